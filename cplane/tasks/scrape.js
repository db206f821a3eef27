// Input: {selectors: [string], limit: number}, and the limit of the JSON text. Returns: for each selector, up to `limit`
// elements that it matches, as JSON; an object with the invalid selectors, or with the selector at which the text grew
// above the limit and its size so far.
({ selectors, limit }, maxBytes) => {
  const clean = (text) => text.toWellFormed().replaceAll("\0", "\ufffd");
  const encoder = new TextEncoder();
  const property = (type, name) => {
    const { get } = Object.getOwnPropertyDescriptor(type.prototype, name);
    return (element) => get.call(element);
  }; // a form's fields hide its properties of the same name
  const innerText = property(HTMLElement, "innerText");
  const textContent = property(Node, "textContent");
  const innerHTML = property(Element, "innerHTML");
  const attributes = property(Element, "attributes");

  const matches = selectors.map((selector) => {
    try {
      return document.querySelectorAll(selector);
    } catch {
      return null;
    }
  });
  const invalid = selectors.filter((_, number) => matches[number] === null);
  if (invalid.length) return { invalid };

  let bytes = 2;
  const parts = [];
  for (const [number, selector] of selectors.entries()) {
    const head = `{"selector":${JSON.stringify(clean(selector))},"results":[`;
    bytes += encoder.encode(head).length + 3;
    const results = [];
    for (const element of Array.from(matches[number]).slice(0, limit)) {
      const text = element instanceof HTMLElement ? innerText(element) : (textContent(element) ?? "");
      const html = text.length > maxBytes ? "" : innerHTML(element);
      if (text.length + html.length + bytes > maxBytes) return { selector, bytes: bytes + text.length + html.length };
      const { x, y, width, height } = Element.prototype.getBoundingClientRect.call(element);
      const json = JSON.stringify({
        text: clean(text),
        html: clean(html),
        attributes: Object.fromEntries(Array.from(attributes(element), ({ name, value }) => [clean(name), clean(value)])),
        box: { x: x + window.scrollX, y: y + window.scrollY, width, height },
      });
      bytes += encoder.encode(json).length + 1;
      if (bytes > maxBytes) return { selector, bytes };
      results.push(json);
    }
    parts.push(`${head}${results.join(",")}]}`);
  }
  return `[${parts.join(",")}]`;
};

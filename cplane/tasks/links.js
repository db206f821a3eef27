// Input: {visibleOnly, excludeExternal}: booleans, and the limit of the JSON text. Returns: the http(s) links of the page
// as JSON, each address once, in document order; once the text is above the limit, an object with its size so far.
({ visibleOnly, excludeExternal }, maxBytes) => {
  const clean = (text) => text.toWellFormed().replaceAll("\0", "\ufffd");
  const encoder = new TextEncoder();
  const links = new Map();
  let bytes = 2;
  for (const anchor of document.querySelectorAll("a[href], area[href]")) {
    if (!/^https?:$/.test(anchor.protocol)) continue;
    const external = anchor.host !== location.host;
    if ((external && excludeExternal) || (visibleOnly && !anchor.checkVisibility({ visibilityProperty: true }))) continue;
    const { href } = anchor;
    const known = links.get(href);
    if (known?.text) continue;
    const text = clean((anchor.innerText || anchor.getAttribute("alt") || "").trim());
    const json = text.length > maxBytes ? text : JSON.stringify({ href, text, external });
    const size = encoder.encode(json).length + 1;
    bytes += size - (known?.size ?? 0);
    if (bytes > maxBytes) return { bytes };
    links.set(href, { text, json, size });
  }
  return `[${Array.from(links.values(), ({ json }) => json).join(",")}]`;
};

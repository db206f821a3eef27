// Input: {selectors: [string], limit: number}. Returns: for each selector, up to `limit` elements that it matches.
({ selectors, limit }) =>
  selectors.map((selector) => {
    let found;
    try {
      found = document.querySelectorAll(selector);
    } catch {
      return { selector, invalid: true, results: [] };
    }
    return {
      selector,
      invalid: false,
      results: Array.from(found).slice(0, limit).map((element) => {
        const { x, y, width, height } = element.getBoundingClientRect();
        return {
          text: element.innerText ?? element.textContent ?? "",
          html: element.innerHTML,
          attributes: Object.fromEntries(Array.from(element.attributes, ({ name, value }) => [name, value])),
          box: { x: x + window.scrollX, y: y + window.scrollY, width, height },
        };
      }),
    };
  });

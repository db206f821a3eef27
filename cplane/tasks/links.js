// Input: {visibleOnly: boolean}. Returns: the http(s) links of the page, each address once, in document order.
({ visibleOnly }) => {
  const links = new Map();
  for (const anchor of document.querySelectorAll("a[href], area[href]")) {
    if (!/^https?:$/.test(anchor.protocol) || (visibleOnly && !anchor.checkVisibility({ visibilityProperty: true }))) continue;
    const text = (anchor.innerText || anchor.getAttribute("alt") || "").trim();
    if (!links.get(anchor.href)?.text) links.set(anchor.href, { href: anchor.href, text, external: anchor.host !== location.host });
  }
  return Array.from(links.values());
};

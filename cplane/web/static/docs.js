// Shows openapi.json. On a server that asks for a key, asks the reader for it and keeps it in this page alone.
let key = null;

function withKey(request) {
  if (key) {
    request.headers.Authorization = `Bearer ${key}`;
  }
  return request;
}

async function load() {
  const answer = await fetch("openapi.json", withKey({ headers: {} }));
  if (answer.status !== 401) {
    return answer.json();
  }
  key = window.prompt("This server asks for a key (CPLANE_API_KEYS):");
  return key ? load() : null;
}

async function show() {
  const spec = await load();
  if (spec === null) {
    document.getElementById("docs").textContent = "Without a key there is nothing to show. Reload to try again.";
    return;
  }
  SwaggerUIBundle({ spec, dom_id: "#docs", deepLinking: true, requestInterceptor: withKey, validatorUrl: null });
}

show();

// Swagger UI over the same document.
import { folder, session } from "./gateway.js";
import { dressed, fetchDocument } from "./document.js";

const { document: described } = await fetchDocument("all.json");
window.SwaggerUIBundle({
  spec: dressed(described),
  dom_id: "#reference",
  deepLinking: true,
  // Their validator and their fonts are on other hosts.
  validatorUrl: null,
  requestInterceptor: (request) => {
    const known = session.now;
    if (known && request.url.startsWith(new URL(folder).origin) && !request.headers.Authorization) {
      request.headers.Authorization = `Bearer ${known.token}`;
    }
    return request;
  },
});
document.documentElement.dataset.shows = "swagger";

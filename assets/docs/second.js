// Swagger UI over the same document, as whoever is signed in on the page beside it.
import { folder, session } from "./gateway.js";
import { dressed, fetchDocument } from "./document.js";

const { document: described } = await fetchDocument("all.json");
const schemes = Object.entries(described.components?.securitySchemes ?? {});
const bearer = schemes.find(([, scheme]) => scheme.type === "http" && scheme.scheme === "bearer")?.[0];
const page = window.SwaggerUIBundle({
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
  onComplete: () => {
    if (bearer && session.now) page.preauthorizeApiKey(bearer, session.now.token);
  },
});
document.documentElement.dataset.shows = "swagger";

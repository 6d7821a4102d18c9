// The documentation page: which document is shown, who is signed in, and the views beside the reference.
import { byId, element } from "./elements.js";
import { authorized, session, signIn, signOut, folder } from "./gateway.js";
import { dressed, fetchDocument, handled } from "./document.js";
import { showStreams } from "./stream.js";
import { showSockets } from "./socket.js";

/** How often the gateway is asked whether the document is another one. */
const EVERY = 2000;

let shown = { name: "all.json", etag: null, document: null };
let reference = null;

function configuration() {
  const token = session.now?.token ?? "";
  const schemes = Object.entries(shown.document.components?.securitySchemes ?? {});
  const bearer = schemes.filter(([, scheme]) => scheme.type === "http" && scheme.scheme === "bearer").map(([name]) => name);
  return {
    content: dressed(shown.document),
    customFetch: authorized,
    authentication: bearer.length
      ? { preferredSecurityScheme: bearer[0], securitySchemes: { [bearer[0]]: { token } } }
      : {},
    defaultHttpClient: { targetKey: "shell", clientKey: "curl" },
    operationTitleSource: "summary",
    documentDownloadType: "none",
    defaultOpenAllTags: true,
    hideClientButton: true,
    showDeveloperTools: "never",
    withDefaultFonts: false,
    persistAuth: false,
    telemetry: false,
    agent: { disabled: true },
    mcp: { disabled: true },
  };
}

function showReference() {
  if (reference) {
    reference.updateConfiguration(configuration());
    return;
  }
  byId("reference").replaceChildren();
  reference = window.Scalar.createApiReference(byId("reference"), configuration());
}

function show() {
  const { info } = shown.document;
  byId("title").textContent = info?.title || "API";
  document.title = `${info?.title || "API"} ${info?.version || ""}`.trim();
  byId("download").href = `${folder}openapi/${shown.name}`;
  showVersions();
  showReference();
  showStreams(byId("stream"), shown.document);
  showSockets(byId("socket"), shown.document);
  // For whoever watches the page from outside.
  document.documentElement.dataset.shows = `${shown.name} ${shown.etag}`;
}

function showVersions() {
  const names = ["all", ...(shown.document["x-versions"] ?? [])];
  const select = byId("version");
  const listed = [...select.options].map((option) => option.value);
  const wanted = names.map((name) => `${name}.json`);
  if (listed.join() !== wanted.join()) {
    select.replaceChildren(...names.map((name) => element("option", { value: `${name}.json` }, name)));
  }
  select.value = shown.name;
}

/** Fetches the document; does nothing where it is the shown one. */
async function refresh(name = shown.name) {
  const fetched = await fetchDocument(name, name === shown.name ? shown.etag : null);
  if (fetched) {
    shown = { name, ...fetched };
    show();
  }
  notice("");
}

function notice(text) {
  byId("notice").hidden = !text;
  byId("notice").textContent = text;
}

async function watch() {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, EVERY));
    if (document.hidden) continue;
    try {
      await refresh();
    } catch (fault) {
      // A version that is gone: everything is still there.
      if (shown.name !== "all.json") await refresh("all.json").catch(() => {});
      else notice(`The gateway does not answer (${fault.message}); this is what it said last.`);
    }
  }
}

function tabs() {
  const all = [...document.querySelectorAll("[role=tab]")];
  const choose = (chosen) => {
    for (const tab of all) {
      tab.setAttribute("aria-selected", String(tab === chosen));
      byId(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
    }
  };
  for (const [index, tab] of all.entries()) {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", ({ key }) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[key];
      if (step) all[(index + step + all.length) % all.length].focus();
    });
  }
}

function signing() {
  const dialog = byId("login");
  const fault = (text) => (byId("login-fault").textContent = text);
  const show = () => {
    const known = session.now;
    byId("who").textContent = known?.name ?? "";
    byId("sign").textContent = known ? "Sign out" : "Sign in";
  };
  const enter = async (handler) => {
    const form = byId("credentials");
    if (!form.reportValidity()) return;
    const { username, password, email } = Object.fromEntries(new FormData(form));
    const path = handled(shown.document, handler);
    if (!path) return fault(`No route of this document ends in ${handler}`);
    const whole = handler === "auth.register" ? { username, password, email } : { username, password };
    try {
      await signIn(path, whole);
      form.reset();
      dialog.close();
    } catch (refused) {
      fault(refused.message);
    }
  };
  byId("sign").addEventListener("click", async () => {
    if (!session.now) return dialog.showModal();
    await signOut(handled(shown.document, "auth.logout")).catch((refused) => notice(refused.message));
  });
  byId("credentials").addEventListener("submit", (event) => {
    event.preventDefault();
    enter("auth.login");
  });
  byId("register").addEventListener("click", () => enter("auth.register"));
  byId("cancel-login").addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => fault(""));
  session.addEventListener("change", () => {
    show();
    if (reference) showReference();
  });
  show();
}

tabs();
signing();
byId("version").addEventListener("change", ({ target }) => refresh(target.value).catch(({ message }) => notice(message)));
refresh()
  .catch(({ message }) => notice(message))
  .then(watch);

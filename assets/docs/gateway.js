// The gateway that serves this page: where it is, who is signed in, and calls to it.
import { refusal } from "./elements.js";

const { base, home } = document.documentElement.dataset;
const KEPT = "voicegate.docs.session";

/** The folder of the documentation, `…/docs/`. */
export const folder = new URL(base || ".", location.href).href;

/** What a proxy in front of the gateway puts before the paths of the manifest; mostly nothing. */
const here = new URL(folder).pathname.replace(/\/$/, "");
export const prefix = here.endsWith(home) ? here.slice(0, here.length - home.length) : "";

/** Address of a path of the manifest. */
export const address = (path) => new URL(prefix + path, location.origin).href;

class Session extends EventTarget {
  get now() {
    try {
      return JSON.parse(sessionStorage.getItem(KEPT));
    } catch {
      return null;
    }
  }

  set now(value) {
    if (value) sessionStorage.setItem(KEPT, JSON.stringify(value));
    else sessionStorage.removeItem(KEPT);
    this.dispatchEvent(new Event("change"));
  }
}

/** Who is signed in: `session.now` is `{ token, refresh, name }` or null. Kept for this tab only; says "change". */
export const session = new Session();

/** fetch(), with the token of whoever is signed in; takes a renewed one over. Only to this gateway. */
export async function authorized(input, init) {
  const request = new Request(input, init);
  const ours = new URL(request.url).origin === location.origin;
  const known = session.now;
  if (ours && known && !request.headers.has("authorization")) {
    request.headers.set("authorization", `Bearer ${known.token}`);
  }
  const answer = await fetch(request);
  const renewed = answer.headers.get("x-new-token");
  if (ours && renewed && known) session.now = { ...session.now, token: renewed };
  return answer;
}

/** Calls an operation with a body of JSON; its answer, or an Error that says what was wrong. */
export async function call(path, body) {
  const answer = await authorized(address(path), {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body ?? {}),
  });
  if (!answer.ok) throw new Error(await refusal(answer));
  return answer.status === 204 ? null : answer.json();
}

/** Signs in by a login or registration of the gateway. */
export async function signIn(path, credentials) {
  session.now = null;
  const said = await call(path, credentials);
  if (!said?.access_token) throw new Error("The gateway answered without a token");
  session.now = { token: said.access_token, refresh: said.refresh_token, name: credentials.username };
}

/** Signs out, here and at the gateway. */
export async function signOut(path) {
  const known = session.now;
  try {
    if (path && known) await call(path, { refresh_token: known.refresh });
  } finally {
    session.now = null;
  }
}

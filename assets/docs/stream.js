// An answer as it is written: asks an operation that answers with server-sent events, and shows each as it comes.
import { element, labelled, refusal } from "./elements.js";
import { address, authorized, call, session } from "./gateway.js";
import { exampleBody, handled, operations, streams } from "./document.js";

/** Events of a body (WHATWG HTML, 9.2.6): `{ event, data, id }`. */
async function* events(body) {
  const decoder = new TextDecoderStream();
  const reader = body.pipeThrough(decoder).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const blocks = rest.split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const event = { event: "message", data: [] };
      for (const line of block.split(/\r?\n/)) {
        if (line.startsWith(":")) continue;
        const [, name, text] = line.match(/^([^:]*):? ?(.*)$/);
        if (name === "data") event.data.push(text);
        else if (name) event[name] = text;
      }
      if (event.data.length) yield { ...event, data: event.data.join("\n") };
    }
  }
}

/** What an event adds to the answer: those that are called so, by `type` or by name, or not called anything. */
function token({ event, data }) {
  try {
    const said = JSON.parse(data);
    const inner = said.data ?? said;
    const text = inner.content ?? inner.token ?? inner.text ?? inner.delta;
    const kind = said.type ?? (event === "message" ? "token" : event);
    return typeof text === "string" && kind === "token" ? text : "";
  } catch {
    return "";
  }
}

const key = ({ method, path }) => `${method.toUpperCase()} ${path}`;

/** Fills the panel for a document; what was typed stays while its operation does. */
export function showStreams(panel, document) {
  const offered = streams(document);
  const names = offered.map(key).join();
  panel.document = document;
  if (panel.names === names) return;
  panel.names = names;
  if (!offered.length) {
    panel.replaceChildren(element("p", {}, "No operation of this document answers with a stream."));
    return;
  }
  const choice = element("select", { id: "stream-operation", onchange: fill });
  const parameters = element("div", { className: "row" });
  const body = element("textarea", { id: "stream-body", rows: 6, spellcheck: false, className: "code" });
  const send = element("button", { type: "button", id: "stream-send", className: "main", onclick: ask }, "Send");
  const stop = element("button", { type: "button", id: "stream-stop", disabled: true }, "Stop");
  const state = element("span", { id: "stream-state", className: "state", role: "status" });
  const answer = element("div", { id: "stream-answer", className: "answer", "aria-live": "polite" });
  const log = element("ol", { id: "stream-log", className: "log" });
  choice.append(...offered.map((one) => element("option", { value: key(one) }, key(one))));
  const chat = offered.find(({ path, method }) => method === "post" && path.includes("chat"));
  choice.value = key(chat ?? offered[0]);
  panel.replaceChildren(
    element("h2", {}, "An answer as it is written"),
    element("p", {}, "Server-sent events, shown as they come. Stop asks the gateway to cancel, where it can."),
    labelled("Operation", choice),
    parameters,
    labelled("Body", body),
    element("div", { className: "row" }, send, stop, state),
    answer,
    element("details", { open: true }, element("summary", {}, "Events"), log),
  );
  fill();

  function chosen() {
    return streams(panel.document).find((one) => key(one) === choice.value);
  }

  function fill() {
    const { path, method, operation } = chosen();
    const names = [...path.matchAll(/\{([^}]+)\}/g)].map(([, name]) => name);
    parameters.replaceChildren(
      ...names.map((name) => labelled(name, element("input", { name }))),
      labelled("Query", element("input", { name: "?", id: "stream-query", placeholder: "a=1&b=2" })),
    );
    const example = method === "get" ? undefined : (exampleBody(panel.document, operation) ?? {});
    if (example && typeof example === "object") {
      if ("query" in example && !example.query) example.query = "Tell me about gateways";
      // The example's is nobody's: a native chat gets a session of the caller's own when it is sent.
      if ("session_id" in example) {
        const native = operation["x-handler"] === "chat.stream";
        example.session_id = native ? "" : `docs-${Math.random().toString(36).slice(2, 10)}`;
      }
    }
    body.value = example === undefined ? "" : JSON.stringify(example, null, 2);
    body.disabled = example === undefined;
  }

  /** A native chat belongs to a session of the caller's: makes one where none is named. */
  async function withSession(operation) {
    if (operation["x-handler"] !== "chat.stream") return;
    const said = JSON.parse(body.value);
    const sessions = handled(panel.document, "sessions.create");
    if (said.session_id || !sessions) return;
    const made = await call(sessions, { title: "From the documentation" });
    body.value = JSON.stringify({ ...said, session_id: made.session_id }, null, 2);
  }

  let stopping = false;

  async function ask() {
    const { path, method, operation } = chosen();
    const leave = new AbortController();
    let target = path;
    for (const input of parameters.querySelectorAll("input")) {
      if (input.name !== "?") target = target.replace(`{${input.name}}`, encodeURIComponent(input.value));
      else if (input.value) target += `?${input.value}`;
    }
    answer.textContent = "";
    log.replaceChildren();
    send.disabled = true;
    stop.disabled = false;
    stop.onclick = () => cancel(path, leave);
    state.textContent = session.now ? "asking …" : "asking (nobody is signed in) …";
    let count = 0;
    stopping = false;
    try {
      await withSession(operation);
      const asked = { method: method.toUpperCase(), headers: { accept: "text/event-stream" }, signal: leave.signal };
      if (!body.disabled) {
        asked.headers["content-type"] = "application/json";
        asked.body = body.value;
      }
      const said = await authorized(address(target), asked);
      if (!said.ok) {
        state.textContent = `${said.status}: ${await refusal(said)}`;
        return;
      }
      for await (const event of events(said.body)) {
        count += 1;
        answer.append(token(event));
        log.append(element("li", {}, element("b", {}, event.event), " ", element("code", {}, event.data)));
        log.scrollTop = log.scrollHeight;
        state.textContent = `${count} events`;
      }
      state.textContent = `${count} events, ${stopping ? "stopped" : "complete"}`;
    } catch (fault) {
      state.textContent = leave.signal.aborted ? `${count} events, stopped here` : `failed: ${fault.message}`;
    } finally {
      send.disabled = false;
      stop.disabled = true;
    }
  }

  /** Asks the gateway to stop the answer; leaves if it cannot, or does not in time. */
  async function cancel(path, leave) {
    const twin = path.replace(/\/stream$/, "/cancel");
    const known = twin !== path && operations(panel.document).some((one) => one.path === twin && one.method === "post");
    stop.disabled = true;
    if (!known) return leave.abort();
    const late = setTimeout(() => leave.abort(), 3000);
    stopping = true;
    state.textContent += ", stopping …";
    try {
      await call(twin, { session_id: JSON.parse(body.value).session_id });
    } catch {
      clearTimeout(late);
      leave.abort();
    }
  }
}

// A console for WebSockets: a ticket, frames both ways, and a microphone for voice.
import { element, labelled } from "./elements.js";
import { address, call } from "./gateway.js";
import { example, handled, resolved, sockets } from "./document.js";

/** Most lines that are kept. */
const LINES = 500;

/** Frames to send, as the document describes them: each kind with what it must have, and one session for all. */
function presets(document, path) {
  const session_id = `docs-${Math.random().toString(36).slice(2, 10)}`;
  const said = resolved(document, document.paths[path]?.get?.["x-websocket"]?.send) ?? {};
  const kinds = (said.oneOf ?? said.anyOf ?? [said]).map((kind) => resolved(document, kind) ?? {});
  const frames = kinds.filter(({ properties }) => properties?.type).map((kind) => {
    const frame = example(document, kind);
    if (kind.properties.session_id) frame.session_id = session_id;
    // What the microphone sends.
    if (frame.type === "voice_start") frame.config = { sample_rate: 16000, channels: 1, language: "zh-CN" };
    return frame;
  });
  return frames.length ? frames : [{ type: "ping" }];
}

/** Fills the panel for a document; an open connection stays while its operation does. */
export function showSockets(panel, document) {
  const offered = sockets(document).map(({ path }) => path);
  panel.document = document;
  if (panel.names === offered.join()) return;
  panel.names = offered.join();
  if (!offered.length) {
    panel.replaceChildren(element("p", {}, "No operation of this document opens a WebSocket."));
    return;
  }
  let socket = null;
  let microphone = null;
  const choice = element("select", { id: "socket-path", onchange: fill });
  choice.append(...offered.map((path) => element("option", { value: path }, path)));
  const open = element("button", { type: "button", id: "socket-open", className: "main", onclick: connect }, "Connect");
  const close = element("button", { type: "button", id: "socket-close", disabled: true, onclick: () => socket?.close(1000) }, "Close");
  const speak = element("button", { type: "button", id: "socket-speak", disabled: true, onclick: talk }, "Microphone");
  const state = element("span", { id: "socket-state", className: "state", role: "status" }, "closed");
  const ready = element("div", { className: "row presets" });
  const frame = element("textarea", { id: "socket-frame", rows: 5, spellcheck: false, className: "code" });
  const send = element("button", { type: "button", id: "socket-send", disabled: true, onclick: say }, "Send frame");
  const log = element("ol", { id: "socket-log", className: "log", "aria-live": "polite" });
  panel.replaceChildren(
    element("h2", {}, "WebSocket console"),
    element("p", {}, "Connects with a ticket, so that no token stands in an address. Microphone streams 16 kHz PCM as voice_audio frames."),
    labelled("Route", choice),
    element("div", { className: "row" }, open, close, speak, state),
    ready,
    labelled("Frame", frame),
    element("div", { className: "row" }, send),
    log,
  );
  fill();

  function fill() {
    const frames = presets(panel.document, choice.value);
    const put = (one) => (frame.value = JSON.stringify(one, null, 2));
    ready.replaceChildren(...frames.map((one) => element("button", { type: "button", onclick: () => put(one) }, one.type)));
    put(frames[0]);
  }

  function line(direction, text) {
    log.append(element("li", { className: direction }, element("b", {}, { in: "←", out: "→", note: "·" }[direction]), " ", element("code", {}, text)));
    while (log.children.length > LINES) log.firstChild.remove();
    log.scrollTop = log.scrollHeight;
  }

  function buttons() {
    const connected = socket?.readyState === WebSocket.OPEN;
    open.disabled = Boolean(socket);
    close.disabled = send.disabled = speak.disabled = !connected;
    state.textContent = connected ? "open" : socket ? "connecting …" : "closed";
  }

  async function connect() {
    open.disabled = true;
    try {
      const at = new URL(address(choice.value));
      at.protocol = at.protocol.replace("http", "ws");
      const tickets = handled(panel.document, "auth.ticket");
      if (tickets) at.searchParams.set("ticket", (await call(tickets)).ticket);
      socket = new WebSocket(at);
    } catch (fault) {
      line("note", fault.message);
      return buttons();
    }
    let opened = false;
    socket.onopen = () => {
      opened = true;
      buttons();
    };
    socket.onmessage = ({ data }) => line("in", typeof data === "string" ? data : `${data.size} bytes`);
    socket.onclose = ({ code, reason }) => {
      line("note", `closed ${code} ${reason}`);
      if (!opened) line("note", `Not let in. Is ${location.origin} in the CORS policy that the route's "origins" names?`);
      socket = null;
      hush();
      buttons();
    };
    buttons();
  }

  function say() {
    socket.send(frame.value);
    line("out", frame.value.replace(/\s*\n\s*/g, " "));
  }

  async function talk() {
    if (microphone) return hush();
    let session_id;
    try {
      session_id = JSON.parse(frame.value).session_id;
      const sound = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
      const context = new AudioContext({ sampleRate: 16000 });
      microphone = { sound, context };
      await context.audioWorklet.addModule(new URL("./microphone.js", import.meta.url));
      const pieces = new AudioWorkletNode(context, "pieces");
      pieces.port.onmessage = ({ data }) => {
        const base64 = btoa(String.fromCharCode(...new Uint8Array(data)));
        if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ type: "voice_audio", session_id, data: base64 }));
      };
      context.createMediaStreamSource(sound).connect(pieces);
      speak.textContent = "Stop microphone";
    } catch (fault) {
      hush();
      line("note", `microphone: ${fault.message}`);
    }
  }

  function hush() {
    for (const track of microphone?.sound.getTracks() ?? []) track.stop();
    microphone?.context.close();
    microphone = null;
    speak.textContent = "Microphone";
  }
}

/** What a login gave. `expires_at` is in milliseconds since 1970. */
export interface Tokens { access_token: string; refresh_token?: string; expires_in?: number; expires_at?: number }

/** Where tokens are kept: memory unless you say otherwise, such as `localStorage` or a mini program's storage. */
export interface TokenStore {
  get(): Tokens | null | Promise<Tokens | null>;
  set(tokens: Tokens | null): void | Promise<void>;
}

export interface ClientOptions {
  /** Where the API is, such as `https://api.example.com`; without it, the page's own origin. */
  baseUrl?: string;
  /** Instead of the global `fetch`. */
  fetch?: (url: string, init: RequestInit) => Promise<Response>;
  /** Instead of the global `WebSocket`, which Node has since 22. */
  WebSocket?: new (url: string, protocols?: string[]) => WebSocket;
  tokens?: TokenStore;
  /** Sent with every request, such as `{ "X-Channel": "web" }`. */
  headers?: Record<string, string>;
  /** How often a call that may be repeated is tried again; 2. */
  retries?: number;
  /** Longest wait before that, in milliseconds; a server that asks for more gets no second try. 30000. */
  maxDelay?: number;
  /** The login is over and cannot be renewed. */
  onSignedOut?: () => void;
  /** Sees every response, for its headers. */
  onResponse?: (response: Response) => void;
}

export interface CallOptions { headers?: Record<string, string>; signal?: AbortSignal }

/** A field that was not as it must be: `pointer` leads to it in the body, or in `parameter`. */
export interface FieldError { pointer: string; parameter?: string; code: string; detail: string }

/** The body of an error (RFC 9457, with what this API adds). */
export interface ProblemDetails {
  error: string; code: string; status: number; request_id?: string; retry_after?: number;
  type?: string; title?: string; detail?: string; errors?: FieldError[]; [more: string]: unknown;
}

/** The API said no. Go by `code`; `message` is for people. */
export class ApiError extends Error {
  readonly status: number;
  readonly code: string;
  readonly request_id: string | undefined;
  readonly errors: FieldError[];
  constructor(readonly problem: ProblemDetails, readonly headers?: Headers) {
    super(problem.error || problem.code);
    this.name = "ApiError";
    this.status = problem.status;
    this.code = problem.code;
    this.request_id = problem.request_id;
    this.errors = problem.errors ?? [];
  }
}

/** A stream of events said that it failed, or broke off (`code` is `stream_broken`). */
export class StreamError extends Error {
  constructor(readonly code: string, message?: string, readonly data?: unknown) {
    super(message || code);
    this.name = "StreamError";
  }
}

/** One server-sent event; `event` is `message` where it has no name. */
export interface ServerEvent<T, E extends string = string> { event: E; id?: string; data: T }

/** Events as they come; `error` is thrown. `break` ends the request, and so does `signal`. */
export type Events<E> = AsyncGenerator<E, void, undefined>;

/** An open WebSocket: iterate over its frames; JSON is parsed, binary frames are `ArrayBuffer`s. */
export interface Socket<In, Out> extends AsyncIterable<In> {
  readonly raw: WebSocket;
  readonly closed: Promise<{ code: number; reason: string }>;
  send(frame: Out): void;
  close(code?: number, reason?: string): void;
}

/** What a method takes as its body, and what it resolves to, or each event of it: `ResultOf<Client["auth"]["login"]>`. */
export type ResultOf<M> = M extends (...a: never[]) => Promise<infer R> ? R : M extends (...a: never[]) => Events<infer T> ? T : never;

type Op = readonly [method: string, path: string, flags: string, type?: string];
type Raw = { event: string; id?: string; data: string };

const sleep = (ms: number, signal?: AbortSignal) => new Promise<void>((done, fail) => {
  const stop = () => { clearTimeout(timer); fail(signal?.reason ?? new Error("aborted")); };
  const timer = setTimeout(() => { signal?.removeEventListener("abort", stop); done(); }, ms);
  if (signal?.aborted) stop();
  else signal?.addEventListener("abort", stop, { once: true });
});

const backOff = (attempt: number) => 250 * 2 ** attempt * (0.5 + Math.random() / 2);

/** Milliseconds that the server asks to wait. */
function asked({ headers }: Response): number | undefined {
  const after = headers.get("Retry-After");
  if (after) return /^\d+$/.test(after) ? +after * 1000 : Math.max(0, Date.parse(after) - Date.now()) || undefined;
  const limit = /\br=0\b.*?\bt=(\d+)/.exec(headers.get("RateLimit") ?? "");
  return limit ? +limit[1]! * 1000 : undefined;
}

async function failure(response: Response): Promise<ApiError> {
  const { status, headers } = response;
  const body = await response.json().catch(() => null) as ProblemDetails | null;
  return new ApiError({ ...(body?.code ? body : { error: `HTTP ${status}`, code: `http_${status}` }), status }, headers);
}

const uuid = () => "10000000-1000-4000-8000-100000000000".replace(/[018]/g, (c) =>
  (+c ^ ((globalThis.crypto?.getRandomValues?.(new Uint8Array(1))[0] ?? Math.random() * 256) & (15 >> (+c / 4)))).toString(16));

function parsed(text: string): unknown {
  try { return JSON.parse(text); } catch { return text; }
}

async function* events(body: ReadableStream<Uint8Array>): AsyncGenerator<Raw, void, undefined> {
  const reader = body.getReader(), decoder = new TextDecoder();
  let rest = "", data: string[] = [], event = "", id: string | undefined;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      // A CR at the end may be half of a CRLF.
      const lines = (rest + decoder.decode(value, { stream: true })).split(/\r\n|\n|\r(?!$)/);
      rest = lines.pop()!;
      for (const line of lines) {
        const [, field, text = ""] = /^([^:]*)(?:: ?(.*))?$/s.exec(line)!;
        if (field === "data") data.push(text);
        else if (field === "event") event = text;
        else if (field === "id") id = text;
        else if (!line) {
          if (data.length) yield { event: event || "message", data: data.join("\n"), ...(id !== undefined && { id }) };
          data = []; event = ""; id = undefined;
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

function inMemory(): TokenStore {
  let held: Tokens | null = null;
  return { get: () => held, set: (tokens) => { held = tokens; } };
}

function queryOf(values: Record<string, unknown> = {}): string {
  const pairs = Object.entries(values).flatMap(([name, value]) =>
    (Array.isArray(value) ? value : [value]).filter((one) => one != null)
      .map((one) => `${encodeURIComponent(name)}=${encodeURIComponent(String(one))}`));
  return pairs.length ? `?${pairs.join("&")}` : "";
}

/** A part of a path. Dots alone would lead elsewhere. */
function segment(value: unknown, many: boolean): string {
  const parts = many ? String(value).split("/") : [String(value)];
  if (parts.some((part) => /^\.{0,2}$/.test(part))) throw new TypeError(`"${value}" cannot stand in a path`);
  return parts.map(encodeURIComponent).join("/");
}

function formOf(body: any): FormData {
  if (body instanceof FormData) return body;
  const form = new FormData();
  for (const [name, value] of Object.entries(body)) for (const one of Array.isArray(value) ? value : [value])
    if (one != null) form.append(name, one instanceof Blob ? one : typeof one === "object" ? JSON.stringify(one) : String(one));
  return form;
}

function opened(ws: WebSocket): Promise<Socket<any, any>> {
  const frames: unknown[] = [];
  let wake = () => {}, over = false;
  ws.binaryType = "arraybuffer";
  ws.onmessage = ({ data }) => { frames.push(typeof data === "string" ? parsed(data) : data); wake(); };
  return new Promise((done, fail) => {
    const closed = new Promise<{ code: number; reason: string }>((end) => {
      ws.onclose = ({ code, reason }) => {
        over = true; wake(); end({ code, reason });
        fail(new StreamError("socket_closed", reason || `closed with ${code}`));
      };
    });
    ws.onopen = () => done({
      raw: ws, closed,
      send: (frame) => ws.send(typeof frame === "string" || frame instanceof Blob || frame instanceof ArrayBuffer || ArrayBuffer.isView(frame) ? frame as any : JSON.stringify(frame)),
      close: (code = 1000, reason) => ws.close(code, reason),
      async *[Symbol.asyncIterator]() {
        for (;;) {
          while (frames.length) yield frames.shift();
          if (over) return;
          await new Promise<void>((next) => { wake = next; });
        }
      },
    });
  });
}

/** A client of the API. */
export function createClient(options: ClientOptions = {}): Client {
  const { baseUrl = "", tokens: store = inMemory(), retries = 2, maxDelay = 30_000 } = options;
  const base = baseUrl.replace(/\/$/, "");
  let renewal: Promise<boolean> | undefined;

  const keep = ({ access_token, refresh_token, expires_in }: Tokens) => store.set({
    access_token, ...(refresh_token && { refresh_token }),
    ...(expires_in && { expires_in, expires_at: Date.now() + expires_in * 1000 }),
  });

  /** Gets new tokens, once for all who ask meanwhile; false where the login is over. */
  const renew = (used?: string): Promise<boolean> => {
    const run = async () => {
      const held = await store.get();
      if (held && held.access_token !== used) return true;
      if (!held?.refresh_token || !REFRESH) return false;
      try {
        await keep(await (await call(REFRESH, REFRESH[1], { refresh_token: held.refresh_token })).json());
        return true;
      } catch (error) {
        if (!(error instanceof ApiError) || error.status > 403) throw error;
        await store.set(null);
        options.onSignedOut?.();
        return false;
      }
    };
    // Tabs that share tokens must not renew them at once: a refresh token works once.
    const locks = typeof navigator === "undefined" ? undefined : navigator.locks;
    renewal ??= Promise.resolve(locks ? locks.request(`voicegate ${base}`, run) : run()).finally(() => { renewal = undefined; });
    return renewal;
  };

  const token = async () => {
    let held = await store.get();
    const { expires_at, expires_in = 300, refresh_token } = held ?? {};
    if (held && expires_at && refresh_token && expires_at - Date.now() < Math.min(30_000, expires_in * 100)) {
      await renew(held.access_token).catch(() => {});
      held = await store.get();
    }
    return held?.access_token;
  };

  async function call(op: Op, path: string, body?: unknown, o: CallOptions = {}): Promise<Response> {
    const [method, , flags, type = "application/json"] = op;
    const has = (flag: string) => flags.includes(flag);
    const headers: Record<string, string> = { Accept: has("s") ? "text/event-stream" : "application/json, */*;q=0.5", ...options.headers };
    let payload: BodyInit | null = null;
    const sent = has("u") && (body instanceof FormData || body instanceof Blob || typeof body === "string");
    if (has("f")) payload = formOf(body);
    else if (sent) payload = body as BodyInit;
    else if (body !== undefined) {
      headers["Content-Type"] = type;
      payload = has("r") ? body as BodyInit : JSON.stringify(body);
    }
    if (has("k")) headers["Idempotency-Key"] = uuid();
    Object.assign(headers, o.headers);
    const repeatable = method !== "POST" && method !== "PATCH" || "Idempotency-Key" in headers;
    for (let attempt = 0, renewed = false; ; attempt++) {
      const bearer = has("a") ? await token() : undefined;
      if (bearer) headers["Authorization"] = `Bearer ${bearer}`;
      let response: Response, wait = backOff(attempt);
      try {
        response = await (options.fetch ?? fetch)(base + path, { method, headers, body: payload, signal: o.signal ?? null });
      } catch (error) {
        if (!repeatable || attempt >= retries || o.signal?.aborted) throw error;
        await sleep(wait, o.signal);
        continue;
      }
      options.onResponse?.(response);
      const fresh = response.headers.get("X-New-Token"), held = fresh ? await store.get() : null;
      if (fresh && held?.access_token === bearer) await keep({ ...held!, access_token: fresh });
      if (response.ok) return response;
      const error = await failure(response);
      if (error.status === 401 && bearer && !renewed && await renew(bearer)) { renewed = true; attempt--; continue; }
      wait = asked(response) ?? wait;
      // An answer that failed is not asked for twice in silence.
      const again = error.status === 429 || error.status === 503 && !has("s");
      if (!again || !repeatable || attempt >= retries || wait > maxDelay) throw error;
      await sleep(wait, o.signal);
    }
  }

  async function* stream(op: Op, path: string, body: unknown, o: CallOptions): Events<any> {
    const resumes = op[2].includes("l");
    const headers = { ...(op[2].includes("k") && { "Idempotency-Key": uuid() }), ...o.headers } as Record<string, string>;
    for (let failures = 0; ; failures++) {
      let why: unknown;
      const response = await call(op, path, body, { ...o, headers });
      try {
        for await (const raw of events(response.body!)) {
          const data: any = parsed(raw.data), kind = data?.type ?? raw.event;
          if (kind === "error" || raw.event === "error") throw new StreamError(data?.code ?? "error", data?.error ?? data?.message, data);
          if (kind === "reauth") {
            why = new StreamError(data.code, undefined, data);
            if (data.code === "token_expired" && await renew((await store.get())?.access_token)) break;
            throw why;
          }
          if (raw.id) { headers["Last-Event-ID"] = raw.id; failures = 0; }
          yield { ...raw, data };
          if (resumes && /^(end|done|cancelled)$/.test(kind)) return;
        }
        if (!resumes && !why) return;
      } catch (error) {
        if (!resumes || error instanceof StreamError || o.signal?.aborted) throw error;
        why = error;
      }
      if (!resumes || failures >= retries) throw why ?? new StreamError("stream_broken");
      await sleep(backOff(failures), o.signal);
    }
  }

  async function socket(op: Op, path: string, o: CallOptions & { protocols?: string[] }): Promise<Socket<any, any>> {
    let url = (base.includes("://") ? base : location.origin + base).replace(/^http/, "ws") + path;
    if (op[2].includes("a") && TICKET && await store.get()) {
      const { ticket } = await (await call(TICKET, TICKET[1], undefined, o)).json();
      url += `${url.includes("?") ? "&" : "?"}ticket=${encodeURIComponent(ticket)}`;
    }
    return opened(new (options.WebSocket ?? WebSocket)(url, o.protocols));
  }

  function invoke(op: Op, args: any[]): unknown {
    const [, template, flags] = op;
    const has = (flag: string) => flags.includes(flag);
    let path = template.replace(/\{(\+?)[^}]*\}/g, (_, many: string) => segment(args.shift(), !!many));
    let body = /[bfru]/.test(flags) ? args.shift() : undefined;
    const o = args.shift() ?? {};
    path += queryOf(o.query);
    if (has("w")) return socket(op, path, o);
    if (has("s")) return stream(op, path, body, o);
    return (async () => {
      if (has("x")) body ??= { refresh_token: (await store.get())?.refresh_token };
      const response = await call(op, path, body, o);
      if (has("o")) await store.set(null);
      if (response.status === 204) return undefined;
      if (has("B") || has("U") && !/json/.test(response.headers.get("Content-Type") ?? "")) return response.blob();
      const text = await response.text();
      if (has("T")) return text;
      const result: any = text ? JSON.parse(text) : undefined;
      if (has("t") && result?.access_token) await keep(result);
      return result;
    })();
  }

  const client: any = {};
  for (const [name, op] of Object.entries(OPERATIONS)) {
    const groups = name.split("."), last = groups.pop()!;
    groups.reduce((at, group) => at[group] ??= {}, client)[last] = (...args: any[]) => invoke(op, args);
  }
  return client;
}

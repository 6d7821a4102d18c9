// What the client does with answers that a test scripts: a real server, and an assertion for each of them.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import { ApiError, StreamError, createClient } from "./api.js";

const seen = [];
let answer = () => {};
const server = createServer((request, response) => {
  const chunks = [];
  request.on("data", (chunk) => chunks.push(chunk));
  request.on("end", () => {
    const { method, url, headers } = request;
    const one = { method, url, headers, body: Buffer.concat(chunks).toString() };
    seen.push(one);
    answer(one, response, seen.length);
  });
});
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
const baseUrl = `http://127.0.0.1:${server.address().port}/`;

const json = (response, status, body, headers = {}) => {
  response.writeHead(status, { "Content-Type": "application/json", ...headers });
  response.end(JSON.stringify(body));
};
const problem = (response, status, code, headers = {}) =>
  json(response, status, { error: `it is ${code}`, code, status, request_id: "r-1", errors: [{ pointer: "/a", code: "required", detail: "d" }] }, headers);
const events = (response, text, end = true) => {
  response.writeHead(200, { "Content-Type": "text/event-stream" });
  response.write(text);
  if (end) response.end();
};
const signedIn = (tokens = {}) => {
  let held = { access_token: "old", refresh_token: "refresh", ...tokens };
  return { get: () => held, set: (next) => { held = next; } };
};
const tokens = (access_token) => ({ access_token, refresh_token: "next", expires_in: 3600, user: { id: "u" } });

async function test(what, script, run) {
  seen.length = 0;
  answer = script;
  try {
    await run();
  } catch (error) {
    error.message = `${what}: ${error.message}`;
    throw error;
  }
  console.log(`ok ${what}`);
}

await test("a login's tokens are kept and sent, and no more of it", (_, response, n) =>
  n === 1 ? json(response, 200, tokens("one")) : json(response, 200, { sessions: [] }), async () => {
  let kept;
  const client = createClient({ baseUrl, tokens: { get: () => kept, set: (next) => { kept = next; } } });
  await client.auth.login({ username: "a", password: "b" });
  await client.sessions.list({ query: { limit: 2, cursor: "a/b&c" } });
  assert.equal(seen[0].headers.authorization, undefined);
  assert.equal(seen[1].headers.authorization, "Bearer one");
  assert.equal(seen[1].url, "/api/v01/sessions?limit=2&cursor=a%2Fb%26c");
  assert.deepEqual(Object.keys(kept).sort(), ["access_token", "expires_at", "expires_in", "refresh_token"]);
});

await test("parallel 401s cause one refresh", ({ url, headers }, response) => {
  if (url.endsWith("/refresh")) setTimeout(() => json(response, 200, tokens("new")), 30);
  else if (headers.authorization === "Bearer new") json(response, 200, { sessions: [] });
  else problem(response, 401, "token_expired");
}, async () => {
  const client = createClient({ baseUrl, tokens: signedIn() });
  await Promise.all(Array.from({ length: 8 }, () => client.sessions.list()));
  await client.sessions.list();
  const refreshes = seen.filter(({ url }) => url.endsWith("/refresh"));
  assert.deepEqual(refreshes.map(({ body }) => JSON.parse(body)), [{ refresh_token: "refresh" }]);
  assert.equal(seen.length, 8 + 1 + 8 + 1);
});

await test("a token that is about to end is renewed before it is used", ({ url, headers }, response) => {
  if (url.endsWith("/refresh")) return json(response, 200, tokens("new"));
  assert.equal(headers.authorization, "Bearer new");
  json(response, 200, { sessions: [] });
}, async () => {
  await createClient({ baseUrl, tokens: signedIn({ expires_in: 3600, expires_at: Date.now() + 1000 }) }).sessions.list();
  assert.equal(seen.length, 2);
});

await test("a refresh that is refused signs out, once, and the 401 is the caller's", (_, response) =>
  problem(response, 401, "token_revoked"), async () => {
  let out = 0;
  const store = signedIn();
  const client = createClient({ baseUrl, tokens: store, onSignedOut: () => { out += 1; } });
  await assert.rejects(client.sessions.list(), (error) => error instanceof ApiError && error.status === 401 && error.code === "token_revoked");
  assert.equal(store.get(), null);
  assert.equal(out, 1);
  assert.equal(seen.length, 2);
});

await test("X-New-Token takes the place of the old one", (_, response, n) =>
  json(response, 200, { sessions: [] }, n === 1 ? { "X-New-Token": "renewed" } : {}), async () => {
  const store = signedIn({ expires_in: 60 });
  const client = createClient({ baseUrl, tokens: store });
  await client.sessions.list();
  await client.sessions.list();
  assert.equal(seen[1].headers.authorization, "Bearer renewed");
  assert.equal(store.get().refresh_token, "refresh");
});

await test("429 is waited out as the server asks, where the call may be repeated", (_, response, n) =>
  n < 3 ? problem(response, 429, "rate_limited", n === 1 ? { "Retry-After": "1" } : { RateLimit: '"default";r=0;t=1' }) : json(response, 200, { sessions: [] }), async () => {
  const begun = Date.now();
  await createClient({ baseUrl, tokens: signedIn() }).sessions.list();
  assert.equal(seen.length, 3);
  assert.ok(Date.now() - begun >= 1990, `${Date.now() - begun} ms`);
});

await test("tries are bounded, and so is the wait", (_, response, n) =>
  problem(response, 503, "overloaded", { "Retry-After": n > 3 ? "3600" : "0" }), async () => {
  const client = createClient({ baseUrl, tokens: signedIn() });
  await assert.rejects(client.sessions.list(), { status: 503, code: "overloaded", request_id: "r-1", errors: [{ pointer: "/a", code: "required", detail: "d" }] });
  assert.equal(seen.length, 3);
  await assert.rejects(client.sessions.list(), ApiError);
  assert.equal(seen.length, 4, "an hour is not waited for");
});

await test("what cannot be repeated is not; a key makes it repeatable", (_, response) =>
  problem(response, 429, "rate_limited", { "Retry-After": "0" }), async () => {
  const client = createClient({ baseUrl, tokens: signedIn() });
  await assert.rejects(client.auth.login({ username: "a", password: "b" }), { code: "rate_limited" });
  assert.equal(seen.length, 1);
  await assert.rejects(client.sessions.create({ title: "t" }), { code: "rate_limited" });
  const keys = seen.slice(1).map(({ headers }) => headers["idempotency-key"]);
  assert.equal(keys.length, 3);
  assert.equal(new Set(keys).size, 1, "the same question");
  assert.match(keys[0], /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
});

await test("an error that is no problem document is told by its status", (_, response) => {
  response.writeHead(502, { "Content-Type": "text/html" });
  response.end("<h1>Bad Gateway</h1>");
}, async () => {
  await assert.rejects(createClient({ baseUrl }).sessions.list(), { name: "ApiError", status: 502, code: "http_502" });
});

await test("events are split wherever the network splits them", (_, response) => {
  response.writeHead(200, { "Content-Type": "text/event-stream" });
  const bytes = Buffer.from(': hi\r\n\r\ndata: {"type":"token",\r\ndata: "content":"你好"}\r\nid: t:1\r\n\r\nevent: note\rdata: plain\r\rdata:{"type":"end"}\n\ndata: lost');
  let at = 0;
  const next = () => {
    if (at < bytes.length) response.write(bytes.subarray(at, at += 1), () => setImmediate(next));
    else response.end();
  };
  next();
}, async () => {
  const all = [];
  for await (const event of createClient({ baseUrl, tokens: signedIn() }).chat.stream({ session_id: "s", query: "q" })) all.push(event);
  assert.deepEqual(all, [
    { event: "message", id: "t:1", data: { type: "token", content: "你好" } },
    { event: "note", data: "plain" },
    { event: "message", data: { type: "end" } },
  ]);
});

await test("a stream that breaks is taken up behind the last event", ({ headers }, response, n) => {
  if (n === 1) {
    events(response, 'data: {"type":"token","content":"a"}\nid: t:1\n\n', false);
    setTimeout(() => response.destroy(), 20);
  } else if (n === 2) {
    assert.equal(headers["last-event-id"], "t:1");
    events(response, 'data: {"type":"token","content":"b"}\nid: t:2\n\n');
  } else {
    assert.equal(headers["last-event-id"], "t:2");
    events(response, 'data: {"type":"end"}\nid: t:3\n\n', false);
  }
}, async () => {
  const said = [];
  for await (const { data } of createClient({ baseUrl, tokens: signedIn() }).chat.stream({ session_id: "s", query: "q" })) said.push(data.content ?? data.type);
  assert.deepEqual(said, ["a", "b", "end"]);
  assert.equal(new Set(seen.map(({ headers }) => headers["idempotency-key"])).size, 1);
  assert.equal(new Set(seen.map(({ body }) => body)).size, 1);
});

await test("a stream that breaks for good says so", (_, response) => events(response, ": nothing\n\n"), async () => {
  const stream = createClient({ baseUrl, retries: 1, tokens: signedIn() }).chat.stream({ session_id: "s", query: "q" });
  await assert.rejects(stream.next(), (error) => error instanceof StreamError && error.code === "stream_broken");
  assert.equal(seen.length, 2);
});

await test("an event that is an error is thrown", (_, response) =>
  events(response, 'data: {"type":"token","content":"a"}\n\nevent: error\ndata: {"type":"error","code":"stream_idle","error":"silence"}\n\n'), async () => {
  const stream = createClient({ baseUrl, tokens: signedIn() }).chat.stream({ session_id: "s", query: "q" });
  assert.equal((await stream.next()).value.data.content, "a");
  await assert.rejects(stream.next(), { name: "StreamError", code: "stream_idle", message: "silence" });
  assert.equal(seen.length, 1);
});

await test("reauth renews the token and comes back", ({ url, headers }, response, n) => {
  if (url.endsWith("/refresh")) json(response, 200, tokens("new"));
  else if (n === 1) events(response, 'data: {"type":"token","content":"a"}\nid: t:1\n\nevent: reauth\ndata: {"type":"reauth","code":"token_expired"}\n\n');
  else {
    assert.deepEqual([headers.authorization, headers["last-event-id"]], ["Bearer new", "t:1"]);
    events(response, 'data: {"type":"end"}\n\n');
  }
}, async () => {
  const said = [];
  for await (const { data } of createClient({ baseUrl, tokens: signedIn() }).chat.stream({ session_id: "s", query: "q" })) said.push(data.type);
  assert.deepEqual(said, ["token", "end"]);
});

await test("a refused stream is an ordinary error", (_, response) => problem(response, 410, "stream_gone"), async () => {
  const stream = createClient({ baseUrl, tokens: signedIn() }).chat.stream({ session_id: "s", query: "q" });
  await assert.rejects(stream.next(), { name: "ApiError", status: 410, code: "stream_gone" });
});

await test("a signal ends a stream, a call and a wait", ({ url }, response) => {
  if (url.includes("stream")) events(response, 'data: {"type":"token","content":"a"}\n\n', false);
  else problem(response, 429, "rate_limited", { "Retry-After": "20" });
}, async () => {
  const client = createClient({ baseUrl, tokens: signedIn() });
  const abort = new AbortController();
  const stream = client.chat.stream({ session_id: "s", query: "q" }, { signal: abort.signal });
  await stream.next();
  setTimeout(() => abort.abort(), 20);
  await assert.rejects(stream.next(), { name: "AbortError" });
  await assert.rejects(client.sessions.list({ signal: AbortSignal.timeout(50) }), { name: "TimeoutError" });
  assert.equal(seen.length, 2);
});

await test("a break ends the request", (request, response) => {
  events(response, 'data: {"type":"token","content":"a"}\n\n', false);
  response.on("close", () => { request.closed = true; });
}, async () => {
  for await (const _ of createClient({ baseUrl, tokens: signedIn() }).chat.stream({ session_id: "s", query: "q" })) break;
  for (let n = 0; n < 100 && !seen[0].closed; n++) await new Promise((next) => setTimeout(next, 20));
  assert.ok(seen[0].closed);
});

await test("paths hold whatever is put into them", (_, response) => { response.writeHead(204).end(); }, async () => {
  const client = createClient({ baseUrl, tokens: signedIn() });
  assert.equal(await client.sessions.delete("a/b?c#d%2f"), undefined);
  assert.equal(seen[0].url, "/api/v01/sessions/a%2Fb%3Fc%23d%252f");
  for (const id of ["..", ".", ""]) assert.throws(() => client.sessions.delete(id), TypeError);
});

await test("bytes, forms and rests of paths", ({ url, headers, body }, response) => {
  if (url.startsWith("/files/")) return response.end(Buffer.from([1, 2, 3]));
  assert.match(headers["content-type"], /^multipart\/form-data; boundary=/);
  assert.match(body, /name="audio"[^]*RIFF[^]*name="language"[^]*zh/);
  json(response, 200, { confidence: 1 });
}, async () => {
  const client = createClient({ baseUrl, tokens: signedIn() });
  assert.equal((await client.files("a/b c.bin")).size, 3);
  assert.equal(seen[0].url, "/files/a/b%20c.bin");
  assert.throws(() => client.files("a/../b"), TypeError);
  assert.deepEqual(await client.voice.transcribe({ audio: new Blob(["RIFF"]), language: "zh" }), { confidence: 1 });
});

await test("a logout needs nothing but what is held", (_, response) => { response.writeHead(204).end(); }, async () => {
  const store = signedIn();
  await createClient({ baseUrl, tokens: store }).auth.logout();
  assert.deepEqual(JSON.parse(seen[0].body), { refresh_token: "refresh" });
  assert.equal(store.get(), null);
});

await test("a refused connection is tried again where that is safe", () => {}, async () => {
  let tries = 0;
  const client = createClient({ baseUrl, fetch: async () => { tries += 1; throw new TypeError("fetch failed"); } });
  await assert.rejects(client.sessions.list(), TypeError);
  assert.equal(tries, 3);
  await assert.rejects(client.auth.login({ username: "a", password: "b" }), TypeError);
  assert.equal(tries, 4);
});

server.closeAllConnections();
server.close();

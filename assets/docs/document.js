// The document of this API: fetched, watched, and dressed for the reference.
import { address, folder, prefix } from "./gateway.js";

const METHODS = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];

/** Fetches a document (`all.json`); `null` where it is the one that `etag` names. */
export async function fetchDocument(name, etag) {
  const headers = etag ? { "if-none-match": etag } : {};
  const answer = await fetch(`${folder}openapi/${name}`, { headers, cache: "no-store" });
  if (answer.status === 304) return null;
  if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
  return { etag: answer.headers.get("etag"), document: await answer.json() };
}

/** Every operation: `{ path, method, operation }`. */
export function operations(document) {
  const all = [];
  for (const [path, item] of Object.entries(document.paths ?? {})) {
    for (const method of METHODS) {
      if (item[method]) all.push({ path, method, operation: item[method] });
    }
  }
  return all;
}

/** Path of the operation that this native handler answers, such as `auth.login`. */
export const handled = (document, handler) =>
  operations(document).find(({ operation }) => operation["x-handler"] === handler)?.path;

/** Follows a reference inside the document. */
export function resolved(document, node) {
  let found = node;
  for (let depth = 0; found?.$ref?.startsWith("#/") && depth < 8; depth += 1) {
    const keys = found.$ref.slice(2).split("/");
    found = keys.reduce((at, key) => at?.[decodeURIComponent(key).replaceAll("~1", "/").replaceAll("~0", "~")], document);
  }
  return found;
}

/** Operations that answer with server-sent events. */
export const streams = (document) =>
  operations(document).filter(({ operation }) =>
    Object.values(operation.responses ?? {}).some((answer) => resolved(document, answer)?.content?.["text/event-stream"]),
  );

/** Operations that open a WebSocket. */
export const sockets = (document) =>
  operations(document).filter(({ method, operation }) => method === "get" && operation.responses?.["101"]);

/** An example of what a schema describes. */
export function example(document, schema, depth = 0) {
  const found = resolved(document, schema) ?? {};
  if ("example" in found) return found.example;
  if (found.examples?.length) return found.examples[0];
  if ("default" in found) return found.default;
  if ("const" in found) return found.const;
  if (found.enum) return found.enum[0];
  const kind = Array.isArray(found.type) ? found.type[0] : found.type;
  if (found.properties && depth < 4) {
    const wanted = found.required ?? Object.keys(found.properties);
    return Object.fromEntries(wanted.map((name) => [name, example(document, found.properties[name], depth + 1)]));
  }
  if (kind === "array") return [];
  if (kind === "integer" || kind === "number") return found.minimum ?? 0;
  if (kind === "boolean") return false;
  return kind === "object" || found.properties ? {} : "";
}

/** An example of an operation's JSON body, if it takes one. */
export function exampleBody(document, operation) {
  const kinds = Object.entries(resolved(document, operation.requestBody)?.content ?? {});
  const content = kinds.find(([kind]) => kind.startsWith("application/json"))?.[1];
  if (!content) return undefined;
  return content.example ?? example(document, content.schema);
}

/** A copy for the reference: this gateway as its server, badges and code for mini programs on every operation. */
export function dressed(document) {
  const copy = structuredClone(document);
  copy.servers = [{ url: prefix || "/", description: "This gateway" }];
  for (const { path, method, operation } of operations(copy)) {
    const badges = badgesOf(operation);
    if (badges.length) operation["x-badges"] = [...(operation["x-badges"] ?? []), ...badges];
    operation["x-codeSamples"] = [
      ...(operation["x-codeSamples"] ?? []),
      { lang: "javascript", label: "wx.request", source: miniProgram(copy, path, method, operation) },
    ];
  }
  return copy;
}

function badgesOf(operation) {
  const badges = [];
  const say = (name, color) => badges.push({ name, position: "after", color });
  const roles = [operation["x-roles"] ?? []].flat();
  if (roles.length) say(`role: ${roles.join(", ")}`, "#0a6b5e");
  else if (operation.security?.some((way) => Object.keys(way).length)) say("signed in", "#0a6b5e");
  for (const limit of [operation["x-rate-limit"] ?? []].flat()) {
    const said = limit.value ?? limit;
    if (said.limit) say(`limit: ${said.limit} / ${said.per ?? said.window ?? "1m"}`, "#8a5a00");
  }
  const gone = Date.parse(operation["x-sunset"] ?? "");
  const until = Number.isNaN(gone) ? "" : `, gone on ${new Date(gone).toISOString().slice(0, 10)}`;
  if (operation.deprecated) say(`deprecated${until}`, "#a33");
  return badges;
}

/** How a mini program calls it (wx.request). */
function miniProgram(document, path, method, operation) {
  const lines = [`wx.request({`, `  url: ${JSON.stringify(address(path))},`, `  method: ${JSON.stringify(method.toUpperCase())},`];
  const header = {};
  const body = exampleBody(document, operation);
  if (body !== undefined) header["content-type"] = "application/json";
  const guarded = operation.security?.some((way) => Object.keys(way).length);
  const entries = Object.entries(header).map(([name, value]) => `${JSON.stringify(name)}: ${JSON.stringify(value)}`);
  if (guarded) entries.push("Authorization: `Bearer ${token}`");
  if (entries.length) lines.push(`  header: { ${entries.join(", ")} },`);
  if (body !== undefined) lines.push(`  data: ${JSON.stringify(body, null, 2).replaceAll("\n", "\n  ")},`);
  const streamed = Object.values(operation.responses ?? {}).some(
    (answer) => resolved(document, answer)?.content?.["text/event-stream"],
  );
  if (streamed) {
    lines.push("  enableChunked: true, // then task.onChunkReceived(({ data }) => …)");
    return `const task = ${lines.join("\n")}\n});`;
  }
  lines.push("  success: ({ statusCode, data }) => console.log(statusCode, data),");
  return `${lines.join("\n")}\n});`;
}

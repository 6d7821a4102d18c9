// A front end's way through the API: the client against a gateway that serves what is shipped, on Node and in a browser.
import { ApiError, createClient, type ResultOf, type Client, type Tokens } from "./voicegate.js";

/** What each step came to. */
export interface Told {
  registered: string; code: string; sessions: number; tokens: string[]; firstToken: number; ended: string; kept: string;
  aborted: string; renewedBy401: boolean; renewedByHeader: boolean; socket: string[]; signedOut: string;
}

type Session = ResultOf<Client["v01"]["sessions"]["create"]>;

export async function run(baseUrl: string, name: string): Promise<Told> {
  let held: Tokens | null = null;
  let fresh = 0;
  const client = createClient({
    baseUrl,
    headers: { "X-Channel": "web" },
    tokens: { get: () => held, set: (tokens) => { held = tokens; } },
    onResponse: ({ headers }) => { if (headers.get("X-New-Token")) fresh += 1; },
  });
  const login = () => held?.access_token;

  const { user } = await client.v01.auth.register({ username: name, email: `${name}@example.com`, password: "Gateway1" });
  const code = await client.v01.auth.login({ username: name, password: "wrong" }).then(
    () => "none", (error: unknown) => error instanceof ApiError ? `${error.status} ${error.code}` : String(error));
  await client.v01.auth.login({ username: name, password: "Gateway1" });

  const session: Session = await client.v01.sessions.create({ title: "Weather" });
  const { sessions } = await client.v01.sessions.list({ query: { limit: 5 } });

  // An answer, token by token.
  const tokens: string[] = [];
  let ended = "", firstToken = 0;
  const begun = Date.now();
  for await (const { data } of client.v01.chat.stream({ session_id: session.session_id, query: "Tell me" })) {
    if (data.type === "token") {
      firstToken ||= Date.now() - begun;
      tokens.push(data.content);
    } else ended = data.type;
  }
  const { messages } = await client.v01.sessions.messages(session.session_id);

  // Another one, of which nobody wants more than the beginning.
  const abort = new AbortController();
  let aborted = "no";
  try {
    for await (const { data } of client.v01.chat.stream({ session_id: session.session_id, query: "More" }, { signal: abort.signal }))
      if (data.type === "token") abort.abort();
  } catch (error) {
    aborted = (error as Error).name;
  }

  // The gateway renews tokens that are about to end; here that is a second after the login.
  for (let n = 0; n < 50 && !fresh; n++) {
    await client.v01.auth.me();
    await new Promise((next) => setTimeout(next, 100));
  }
  const renewedByHeader = fresh > 0;
  held = { ...held!, access_token: "no.such.token" };
  await Promise.all([client.v01.sessions.list(), client.v01.auth.me(), client.v01.sessions.list()]);
  const renewedBy401 = login() !== "no.such.token";

  const socket: string[] = [];
  const voice = await client.v2.voice.getStream();
  voice.send({ type: "voice_start", session_id: session.session_id });
  for await (const frame of voice) {
    socket.push(frame.type);
    if (socket.length === 1) voice.send({ type: "voice_stop", session_id: session.session_id });
    else if (socket.includes("session_stopped")) voice.close();
  }

  await client.v01.auth.logout();
  const signedOut = await client.v01.auth.me().then(() => "in", (error: ApiError) => error.code);
  const kept = messages.map(({ role, status }) => `${role} ${status}`).join(", ");
  return {
    registered: user.username, code, sessions: sessions.length, tokens, firstToken, ended, kept, aborted, renewedBy401, renewedByHeader, socket, signedOut,
  };
}

// What the compiler must know of streams and sockets, and what it must not let pass. Compiled, never run.
import type { Client, ResultOf } from "./voicegate.js";

declare const client: Client;

export async function stream(): Promise<void> {
  for await (const { event, data, id } of client.v01.chat.stream({ session_id: "s", query: "q" })) {
    const name: "message" = event;
    const place: string | undefined = id;
    if (data.type === "token") console.log(name, place, data.content.length);
    else if (data.type === "end") console.log(data.total_tokens.toFixed());
    else if (data.type === "start") console.log(data.session_id.length);
    else {
      const last: "cancelled" = data.type;
      console.log(last);
    }
    // @ts-expect-error Errors are thrown: there is nothing to compare with.
    if (data.type === "error") console.log(data);
  }
  for await (const event of client.v2.chat.postStream({ session_id: "s", query: "q" })) {
    console.log(event.data.meta.session_id);
    if (event.event === "token") console.log(event.data.data.content.length, event.data.data.index.toFixed());
    else if (event.event === "thinking") console.log(event.data.data.stage.length);
    else if (event.event === "cancelled") console.log(event.data.data.session_id);
    else console.log(event.data.data.finish_reason.length);
    // @ts-expect-error No event is called so.
    if (event.event === "tokens") console.log(event);
  }
  const one: ResultOf<Client["v2"]["chat"]["postStream"]>["event"] = "done";
  console.log(one);
}

export async function voice(): Promise<void> {
  const socket = await client.v2.voice.getStream();
  socket.send({ type: "voice_start", config: { sample_rate: 16000 } });
  socket.send({ type: "voice_audio", data: "AAAA" });
  socket.send(new ArrayBuffer(8));
  socket.send(new Blob([]));
  socket.send(new Int16Array(8));
  // @ts-expect-error No frame is called so.
  socket.send({ type: "voice_begin" });
  // @ts-expect-error Audio needs its data.
  socket.send({ type: "voice_audio" });
  for await (const frame of socket) {
    if (frame.type === "asr_final") console.log(frame.text.length, frame.confidence.toFixed());
    else if (frame.type === "session_stopped") console.log(frame.duration_ms.toFixed());
    else if (frame.type === "error") console.log(frame.code === "not_started");
    // @ts-expect-error Nothing of the kind is said.
    else if (frame.type === "voice_start") console.log(frame);
  }

  const older = await client.v2.voice.getWs();
  older.send({ type: "start_recording" });
  for await (const frame of older) if (frame.type === "transcription" && frame.data.is_final) older.close();

  const signaling = await client.v2.webrtc.getSignaling();
  signaling.send({ type: "join", room: "r" });
  for await (const frame of signaling) if (frame.type === "offer") signaling.send({ type: "answer", sdp: frame.sdp ?? "" });

  const news = await client.v2.notifications.get();
  for await (const frame of news) if (frame.type === "notification") news.send({ type: "ack", id: frame.id });
}

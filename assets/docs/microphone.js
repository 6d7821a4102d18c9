// Runs beside the page, in the audio thread: sound as pieces of 16-bit PCM, a fifth of a second each.
const SAMPLES = 3200;

class Pieces extends AudioWorkletProcessor {
  piece = new Int16Array(SAMPLES);
  filled = 0;

  process([[channel]]) {
    for (const sample of channel ?? []) {
      this.piece[this.filled++] = Math.max(-1, Math.min(1, sample)) * 0x7fff;
      if (this.filled === SAMPLES) {
        this.port.postMessage(this.piece.buffer.slice(0));
        this.filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("pieces", Pieces);

//! `WS /api/v1/voice/ws`: the dialect of the original gateway's own voice socket.
//!
//! Every message, both ways, is `{type, data, session_id, timestamp, metadata}`; `timestamp` is in milliseconds.
//!
//! | caller | service |
//! |---|---|
//! | | `connected` |
//! | `start_recording`, `data` may be a config | `recording_started` |
//! | `audio_data`, `data` is base64; or a binary frame | `transcription` with `data: {text, is_final}`; after a whole sentence `response` |
//! | `stop_recording` | the same for what was begun, `recording_stopped` |
//! | `config_update`, `data` is a config | `config_updated` |
//! | `ping` | `pong` |
//!
//! Faults are `error` with `data: {code, message}`; the socket stays open.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::algorithm::Clock;
use super::recognizer::{Config, Recognizer, Understood};
use super::script::answer;
use super::socket::{Actor, Heard};

/// One caller's recordings.
pub(super) struct Recording {
    clock: Clock,
    session_id: String,
    recognizer: Recognizer,
    runs: bool,
}

impl Recording {
    pub(super) fn new(clock: Clock, session_id: String) -> Self {
        Self { clock, session_id, recognizer: Recognizer::new(Config::default()), runs: false }
    }

    fn message(&mut self, text: &str) -> Result<Vec<Value>, (&'static str, String)> {
        let message: Value = serde_json::from_str(text)
            .map_err(|error| ("invalid_message", format!("this is not JSON: {error}")))?;
        let data = &message["data"];
        match message["type"].as_str() {
            Some("ping") => Ok(vec![self.event("pong", data.clone())]),
            Some("start_recording") => {
                let config = data
                    .as_object()
                    .map_or(Ok(self.recognizer.config().clone()), |_| Config::read(Some(data)));
                self.recognizer.reconfigure(config.map_err(|error| ("invalid_config", error))?);
                self.runs = true;
                Ok(vec![self.event("recording_started", self.recognizer.config().json())])
            }
            Some("config_update") => {
                let config = Config::read(Some(data)).map_err(|error| ("invalid_config", error))?;
                self.recognizer.reconfigure(config);
                Ok(vec![self.event("config_updated", self.recognizer.config().json())])
            }
            Some("audio_data") => {
                let audio = data.as_str().and_then(|data| STANDARD.decode(data).ok());
                let audio =
                    audio.ok_or_else(|| ("invalid_audio", "data must be audio in base64".to_owned()))?;
                self.audio(audio.len() as u64)
            }
            Some("stop_recording") if self.runs => {
                self.runs = false;
                let understood = self.recognizer.end();
                let mut events = self.told(understood);
                let told = json!({ "audio_bytes": self.recognizer.bytes(), "duration_ms": self.recognizer.millis() });
                events.push(self.event("recording_stopped", told));
                Ok(events)
            }
            Some("stop_recording") => Err(not_recording()),
            _ => {
                let known = "audio_data, start_recording, stop_recording, config_update or ping";
                Err(("unknown_type", format!("type must be {known}")))
            }
        }
    }

    fn audio(&mut self, bytes: u64) -> Result<Vec<Value>, (&'static str, String)> {
        if !self.runs {
            return Err(not_recording());
        }
        let understood = self.recognizer.hear(bytes);
        Ok(self.told(understood))
    }

    fn told(&self, understood: Option<Understood>) -> Vec<Value> {
        match understood {
            None => Vec::new(),
            Some(Understood::Partial(text)) => {
                vec![self.event("transcription", json!({ "text": text, "is_final": false }))]
            }
            Some(Understood::Final(text)) => vec![
                self.event("transcription", json!({ "text": text, "is_final": true })),
                self.event("response", json!({ "text": answer(&text) })),
            ],
        }
    }

    fn event(&self, name: &str, data: Value) -> Value {
        json!({ "type": name, "data": data, "session_id": self.session_id,
                "timestamp": (self.clock)().as_millisecond(), "metadata": {} })
    }
}

impl Actor for Recording {
    fn open(&mut self) -> Vec<Value> {
        vec![self.event("connected", self.recognizer.config().json())]
    }

    fn hear(&mut self, heard: Heard) -> Vec<Value> {
        let answer = match heard {
            Heard::Text(text) => self.message(&text),
            Heard::Binary(audio) => self.audio(audio.len() as u64),
        };
        answer.unwrap_or_else(|(code, message)| {
            vec![self.event("error", json!({ "code": code, "message": message }))]
        })
    }
}

fn not_recording() -> (&'static str, String) {
    ("not_recording", "send start_recording first".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dialect_is_spoken() {
        let mut recording = Recording::new(|| jiff::Timestamp::UNIX_EPOCH, "s".to_owned());
        let mut say = |message: Value| -> Vec<(String, Value)> {
            let events = match message.as_u64() {
                Some(bytes) => recording.hear(Heard::Binary(vec![0; bytes as usize].into())),
                None => recording.hear(Heard::Text(message.to_string())),
            };
            let told = events.into_iter().map(|mut event| {
                for key in ["session_id", "timestamp", "metadata"] {
                    assert!(!event[key].is_null(), "{event}");
                }
                (event["type"].as_str().unwrap().to_owned(), event["data"].take())
            });
            told.collect()
        };
        assert_eq!(say(json!({ "type": "ping", "data": 7 })), [("pong".to_owned(), json!(7))]);
        for early in [json!(9600), json!({ "type": "stop_recording" })] {
            assert_eq!(say(early)[0].1["code"], "not_recording");
        }
        assert_eq!(
            say(json!({ "type": "config_update", "data": { "language": "en-US" } }))[0].0,
            "config_updated"
        );
        let started = say(json!({ "type": "start_recording" }));
        assert_eq!((&*started[0].0, &started[0].1["language"]), ("recording_started", &json!("en-US")));
        let audio = STANDARD.encode([0; 9600]);
        let heard = say(json!({ "type": "audio_data", "data": audio }));
        assert_eq!(heard, [("transcription".to_owned(), json!({ "text": "What", "is_final": false }))]);
        let stopped: Vec<_> =
            say(json!({ "type": "stop_recording" })).into_iter().map(|(name, _)| name).collect();
        assert_eq!(stopped, ["transcription", "response", "recording_stopped"]);
        for (bad, code) in [
            (json!({ "type": "config_update", "data": { "channels": 7 } }), "invalid_config"),
            (json!({ "type": "audio_data", "data": 1 }), "invalid_audio"),
            (json!({ "type": "sing" }), "unknown_type"),
        ] {
            assert_eq!(say(bad)[0].1["code"], code);
        }
    }
}

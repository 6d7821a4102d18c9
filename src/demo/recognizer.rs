//! Speech recognition, played: audio is counted, not understood. Every [`WORD`] of it one more word of a fixed sentence
//! has been heard; a sentence that is whole is final. So the same audio is always understood alike.

use serde::Deserialize;
use serde_json::{Value, json};

/// Milliseconds of audio that one word takes.
const WORD: u64 = 300;

/// How audio comes: the original's defaults.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Config {
    pub(super) sample_rate: u32,
    pub(super) channels: u32,
    pub(super) language: String,
}

impl Default for Config {
    fn default() -> Self {
        Self { sample_rate: 16_000, channels: 1, language: "zh-CN".to_owned() }
    }
}

impl Config {
    /// As a caller gave it, or nothing; the error is a sentence for the caller.
    pub(super) fn read(given: Option<&Value>) -> Result<Self, String> {
        let Some(given) = given.filter(|given| !given.is_null()) else { return Ok(Self::default()) };
        let config = Self::deserialize(given).map_err(|error| format!("config: {error}"))?;
        if !(8_000..=48_000).contains(&config.sample_rate) {
            return Err("config: sample_rate must be from 8000 to 48000".to_owned());
        }
        if !(1..=2).contains(&config.channels) {
            return Err("config: channels must be 1 or 2".to_owned());
        }
        Ok(config)
    }

    pub(super) fn json(&self) -> Value {
        json!({ "sample_rate": self.sample_rate, "channels": self.channels, "language": self.language })
    }

    /// How long so many bytes of 16-bit samples last, in milliseconds.
    fn millis(&self, bytes: u64) -> u64 {
        bytes * 1000 / (u64::from(self.sample_rate) * u64::from(self.channels) * 2)
    }

    /// The sentence that every speaker of the language says.
    fn words(&self) -> &'static [&'static str] {
        match self.language.starts_with("zh") {
            true => &["今天", "的", "天气", "怎么样"],
            false => &["What", "is", "the", "weather", "like", "today"],
        }
    }

    fn sentence(&self, words: usize) -> String {
        let between = if self.language.starts_with("zh") { "" } else { " " };
        self.words()[..words].join(between)
    }
}

/// What was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Understood {
    /// So far.
    Partial(String),
    /// A whole sentence.
    Final(String),
}

/// One recording.
#[derive(Debug)]
pub(super) struct Recognizer {
    config: Config,
    bytes: u64,
    /// Words of all sentences that were told.
    told: u64,
}

impl Recognizer {
    pub(super) fn new(config: Config) -> Self {
        Self { config, bytes: 0, told: 0 }
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// From now on audio comes like this.
    pub(super) fn reconfigure(&mut self, config: Config) {
        *self = Self { config, bytes: 0, told: 0 };
    }

    /// Bytes of audio so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Length of the audio so far, in milliseconds.
    pub(super) fn millis(&self) -> u64 {
        self.config.millis(self.bytes)
    }

    /// Hears some audio; what that makes of the sentence, if anything.
    pub(super) fn hear(&mut self, bytes: u64) -> Option<Understood> {
        self.bytes += bytes;
        let words = self.millis() / WORD;
        let (before, length) = (self.told, self.config.words().len() as u64);
        self.told = words;
        // However much came at once: the end of a sentence is told before the beginning of the next.
        if words / length > before / length {
            return Some(Understood::Final(self.config.sentence(length as usize)));
        }
        (words > before).then(|| Understood::Partial(self.config.sentence((words % length) as usize)))
    }

    /// The recording is over: the sentence that was begun, as far as it was heard.
    pub(super) fn end(&mut self) -> Option<Understood> {
        let begun = self.told % self.config.words().len() as u64;
        self.told -= begun;
        (begun > 0).then(|| Understood::Final(self.config.sentence(begun as usize)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Understood::{Final, Partial};

    #[test]
    fn words_come_with_the_audio_and_a_whole_sentence_is_final() {
        let mut english = Recognizer::new(Config { language: "en-US".into(), ..Config::default() });
        // 300 ms at 16 kHz, mono, 16 bit.
        let word = 9600;
        assert_eq!(english.hear(word - 1), None);
        assert_eq!(english.hear(1), Some(Partial("What".into())));
        assert_eq!(english.hear(2 * word), Some(Partial("What is the".into())));
        assert_eq!(english.hear(3 * word), Some(Final("What is the weather like today".into())));
        assert_eq!(english.hear(word / 2), None);
        assert_eq!(english.hear(word / 2), Some(Partial("What".into())));
        assert_eq!(english.end(), Some(Final("What".into())));
        assert_eq!(english.end(), None);
        assert_eq!((english.millis(), english.bytes()), (2100, 7 * word));
        let mut chinese = Recognizer::new(Config::default());
        assert_eq!(chinese.hear(3 * word), Some(Partial("今天的天气".into())));
    }

    #[test]
    fn configurations_are_read_and_bounded() {
        let read = |value: Value| Config::read(Some(&value));
        assert_eq!(read(json!({ "sample_rate": 8000 })).unwrap().language, "zh-CN");
        assert_eq!(read(Value::Null), Ok(Config::default()));
        for bad in
            [json!({ "sample_rate": 1 }), json!({ "channels": 9 }), json!({ "sample_rate": "x" }), json!(1)]
        {
            assert!(read(bad.clone()).unwrap_err().starts_with("config: "), "{bad}");
        }
    }
}

//! What the demo assistant says, and how fast: a friendly answer that takes up the query (in Chinese when the query is),
//! cut into tokens, each with its pace. Nothing here is random: the same query is answered alike, token for token.

use std::borrow::Cow;
use std::time::Duration;

/// The human pace: 25 to 40 ms per token.
const PACE_BASE_MS: u64 = 25;
const PACE_SPREAD_MS: u64 = 16;

/// How much of the query the answer quotes, in characters.
const QUOTED: usize = 60;

/// Something the assistant knows to talk about, found by a word of the query.
struct Topic {
    words: &'static [&'static str],
    english: &'static str,
    chinese: &'static str,
}

const TOPICS: &[Topic] = &[
    Topic {
        words: &["hello", "hi", "hey", "你好", "您好", "嗨"],
        english: "It is good to hear from you. Ask me anything about your documents, your conversations or \
                  VoiceHelper itself, by text or by voice, and I will look it up for you.",
        chinese: "很高兴见到您。关于您的文档、对话或者 VoiceHelper 本身，您都可以用文字或语音问我，我来为您查找。",
    },
    Topic {
        words: &["thanks", "thank", "谢谢", "感谢"],
        english: "You are very welcome. If anything is still unclear, just ask on; this conversation remembers what we \
                  have talked about.",
        chinese: "不客气！如果还有不清楚的地方，请继续提问，我会记住我们聊过的内容。",
    },
    Topic {
        words: &["voice", "speech", "microphone", "语音", "录音", "麦克风"],
        english: "VoiceHelper listens while you speak: your words are transcribed as you say them, the answer is written \
                  at once, and it can be read to you in the voice you like.",
        chinese: "您说话的同时，VoiceHelper 就在聆听：语音会实时转成文字，答案随即生成，并可以用您喜欢的声音朗读出来。",
    },
    Topic {
        words: &["document", "documents", "file", "files", "search", "文档", "文件", "搜索", "检索"],
        english: "I can search your documents for that. Upload them once, and every later question is answered from them, \
                  with the passages it rests on.",
        chinese: "我可以在您的文档里查找。文档上传一次之后，以后的每个问题都会依据它们回答，并注明所引用的段落。",
    },
    Topic {
        words: &["gateway", "route", "routes", "stream", "streaming", "sse", "网关", "路由", "流式"],
        english: "These words reach you through the gateway, one event per token, the moment they are written. The route \
                  that carries them is a few lines of YAML, and you can change it while I speak.",
        chinese: "这些文字正经过网关逐个送到您面前，一个词一个事件，写出即送达。承载它们的路由只是几行 YAML，我说话的时候您也可以修改它。",
    },
];

const ENGLISH_ELSE: &str = "Here is how I would approach it: first settle what exactly is wanted, then gather what is \
                            already known, and then take the smallest step that brings you closer. Tell me a little more \
                            about your goal, and I can be more specific.";
const CHINESE_ELSE: &str = "我的建议是：先明确真正想要的结果，再整理已经掌握的信息，然后迈出离目标最近的一小步。如果您愿意多说一点背景，我可以给出更具体的回答。";

/// The answer to one query, as tokens.
#[derive(Debug)]
pub(super) struct Script {
    tokens: Vec<String>,
    length: usize,
}

impl Script {
    /// The answer to `query`; of exactly `length` tokens where that is given (it is cut, or begun again).
    pub(super) fn new(query: &str, length: Option<usize>) -> Self {
        let tokens = tokenise(&answer(query));
        Self { length: length.unwrap_or(tokens.len()), tokens }
    }

    /// How many tokens there are.
    pub(super) fn len(&self) -> usize {
        self.length
    }

    /// The token at `index`, with the white space that follows it.
    pub(super) fn token(&self, index: usize) -> Cow<'_, str> {
        let place = index % self.tokens.len();
        let token = &self.tokens[place];
        if place + 1 == self.tokens.len() && index + 1 < self.length {
            // The answer begins again: as a new paragraph.
            return Cow::Owned(format!("{token}\n\n"));
        }
        Cow::Borrowed(token)
    }
}

/// The human pause before the token at `index`.
pub(super) fn pace(index: usize) -> Duration {
    // 7 and 16 share no factor, so that all 16 pauses come once before the first repeats.
    Duration::from_millis(PACE_BASE_MS + (index as u64).wrapping_mul(7) % PACE_SPREAD_MS)
}

/// The whole answer as text. It is never empty and never ends in white space.
pub(super) fn answer(query: &str) -> String {
    let query = query.trim();
    let chinese = query.chars().any(is_han);
    let quoted = quote(query);
    let known = topic(query);
    if chinese {
        let text = known.map_or(CHINESE_ELSE, |topic| topic.chinese);
        format!("您好！您问的是“{quoted}”。{text}")
    } else {
        let text = known.map_or(ENGLISH_ELSE, |topic| topic.english);
        format!("Hello! You asked: \u{201c}{quoted}\u{201d}. {text}")
    }
}

/// The first topic one of whose words the query has: English as a whole word, Chinese anywhere.
fn topic(query: &str) -> Option<&'static Topic> {
    let lower = query.to_lowercase();
    let has = |word: &str| match word.chars().any(is_han) {
        true => lower.contains(word),
        false => lower.split(|c: char| !c.is_ascii_alphanumeric()).any(|spoken| spoken == word),
    };
    TOPICS.iter().find(|topic| topic.words.iter().any(|word| has(word)))
}

/// The query on one line, cut to [`QUOTED`] characters.
fn quote(query: &str) -> String {
    let mut characters = query.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut quoted: String = characters.by_ref().take(QUOTED).collect();
    if characters.next().is_some() {
        quoted.push('…');
    }
    quoted
}

/// Cuts a text into words with the white space behind them, Chinese into characters with the punctuation behind them.
/// Joined, the tokens are the text again.
fn tokenise(text: &str) -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut previous = ' ';
    for c in text.chars() {
        let begins = is_han(c)
            || (previous.is_whitespace() && !c.is_whitespace())
            || (c.is_alphanumeric() && (is_han(previous) || is_wide_punctuation(previous)));
        match tokens.last_mut() {
            Some(token) if !begins => token.push(c),
            _ => tokens.push(c.to_string()),
        }
        previous = c;
    }
    tokens
}

/// A Chinese character: the unified ideographs and their extensions.
fn is_han(c: char) -> bool {
    matches!(c, '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{20000}'..='\u{3ffff}')
}

/// The punctuation that Chinese text has, such as `，` and `。`.
fn is_wide_punctuation(c: char) -> bool {
    matches!(c, '\u{3000}'..='\u{303f}' | '\u{ff00}'..='\u{ffef}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_takes_up_query_and_language() {
        let english = answer("How do routes work?");
        assert!(
            english.starts_with("Hello!")
                && english.contains("How do routes work?")
                && english.contains("YAML")
        );
        let chinese = answer("你好，请介绍一下自己");
        assert!(chinese.contains("你好，请介绍一下自己") && chinese.contains("很高兴"), "{chinese}");
        assert!(answer("why is this so").contains("smallest step"), "`hi` in `this` is no greeting");
    }

    #[test]
    fn joined_tokens_are_the_text_again() {
        for query in ["hello", "什么是 VoiceHelper 网关？", "naïve café: 100% sûr", "日本語 and 中文"]
        {
            let script = Script::new(query, None);
            let joined: String = (0..script.len()).map(|i| script.token(i)).collect();
            assert_eq!(joined, answer(query));
            assert!(script.len() > 20, "{query}: a stream of {} tokens shows nothing", script.len());
        }
        assert_eq!(
            tokenise("Hi, “naïve” you. 你好，Rust！"),
            ["Hi, ", "“naïve” ", "you. ", "你", "好，", "Rust！"]
        );
    }

    #[test]
    fn a_length_is_exact_and_goes_on_as_a_new_paragraph() {
        let whole = Script::new("hello", None).len();
        let script = Script::new("hello", Some(whole * 2 + 1));
        assert_eq!(script.len(), whole * 2 + 1);
        let joined: String = (0..script.len()).map(|i| script.token(i)).collect();
        assert!(joined.starts_with(&format!("{0}\n\n{0}\n\nHello", answer("hello"))), "{joined}");
        assert_eq!(Script::new("hello", Some(0)).len(), 0);
    }

    #[test]
    fn a_long_query_is_quoted_in_part() {
        let answer = answer(&"长".repeat(2000));
        assert!(answer.contains('…') && answer.chars().count() < 200);
    }

    #[test]
    fn the_pace_is_human_and_varies() {
        let paces: std::collections::BTreeSet<_> = (0..16).map(|i| pace(i).as_millis()).collect();
        assert_eq!(paces, (25..=40).collect());
    }
}

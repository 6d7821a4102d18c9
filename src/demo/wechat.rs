//! The stand-in for WeChat's login: `GET /sns/jscode2session?appid&secret&js_code&grant_type=authorization_code`.
//!
//! What stands before a code's first `.` is its user: `ann.1` and `ann.2` are one, so that a test can log in twice. A
//! code that begins with `invalid` is refused as WeChat does (40029), `busy` fails for the moment (-1). Like WeChat it
//! says 200 to everything.

use serde_json::{Value, json};

/// Answers with the query's string.
pub(super) fn session(query: &str) -> Value {
    let given = |wanted: &str| {
        url::form_urlencoded::parse(query.as_bytes())
            .find(|(name, _)| name == wanted)
            .map(|(_, value)| value.into_owned())
            .filter(|value| !value.is_empty())
    };
    let (Some(_), Some(_)) = (given("appid"), given("secret")) else {
        return json!({ "errcode": 40013, "errmsg": "invalid appid" });
    };
    let Some(code) = given("js_code").filter(|code| !code.starts_with("invalid")) else {
        return json!({ "errcode": 40029, "errmsg": "invalid code" });
    };
    if code == "busy" {
        return json!({ "errcode": -1, "errmsg": "system error" });
    }
    let user = code.split('.').next().unwrap_or_default();
    json!({ "openid": format!("demo-openid-{user}"), "session_key": "ZGVtbw==" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_many_codes() {
        let session = |code: &str| session(&format!("appid=a&secret=b&js_code={code}"));
        assert_eq!(session("ann.1"), session("ann.2"));
        assert_ne!(session("ann.1")["openid"], session("bob.1")["openid"]);
        assert_eq!(session("invalid-1")["errcode"], 40029);
        assert_eq!(super::session("js_code=ann")["errcode"], 40013);
    }
}

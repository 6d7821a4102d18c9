//! WeChat's side of a login: a mini program's `code` becomes the user's openid (`GET sns/jscode2session`).
//!
//! The app's secret stands in the query, because WeChat wants it there: no URL of these calls reaches a log, and
//! redirects are not followed.

use crate::error::{GatewayError, Kind};
use crate::settings::{Secret, WechatSettings};
use serde::Deserialize;
use std::sync::Arc;
use std::time::Duration;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

/// An answer is a few hundred bytes; more is none of WeChat's.
const MAX_ANSWER: usize = 64 * 1024;

/// The client of one app.
pub struct Wechat {
    app: Option<(String, Secret)>,
    endpoint: url::Url,
    client: reqwest::Client,
}

/// Why the client cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum WechatError {
    /// The address is none.
    #[error("WECHAT_API_URL is not an http or https address")]
    Address,
    /// The HTTP client does not start.
    #[error("the client for WeChat cannot start: {0}")]
    Client(#[from] reqwest::Error),
}

#[derive(Deserialize)]
struct Answer {
    openid: Option<String>,
    #[serde(default)]
    errcode: i64,
}

impl Wechat {
    /// By the process's settings.
    ///
    /// # Errors
    /// [`WechatError`].
    pub fn new(settings: &WechatSettings) -> Result<Self, WechatError> {
        let base = settings.wechat_api_url.trim_end_matches('/');
        let endpoint = url::Url::parse(&format!("{base}/sns/jscode2session"))
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
            .ok_or(WechatError::Address)?;
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the ring provider has the suites of TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let timeout: Duration = settings.wechat_timeout.0;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .timeout(timeout)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()?;
        let app = settings.wechat_app_id.clone().zip(settings.wechat_app_secret.clone());
        Ok(Wechat { app, endpoint, client })
    }

    /// The openid behind a login code.
    ///
    /// # Errors
    /// 401 where WeChat does not accept the code, 502 where it does not answer, 503 where no app is set or WeChat is
    /// busy.
    pub async fn openid(&self, code: &str) -> Result<String, GatewayError> {
        let Some((id, secret)) = &self.app else {
            tracing::error!("a WeChat login came, but WECHAT_APP_ID and WECHAT_APP_SECRET are not set");
            return Err(Kind::Unavailable.into());
        };
        let mut url = self.endpoint.clone();
        url.query_pairs_mut()
            .append_pair("appid", id)
            .append_pair("secret", secret.reveal())
            .append_pair("js_code", code)
            .append_pair("grant_type", "authorization_code");
        let answer = self.ask(url).await.map_err(|error| {
            tracing::error!(error = %error.without_url(), "WeChat does not answer");
            GatewayError::from(Kind::WechatUnreachable)
        })?;
        let answer: Answer = serde_json::from_slice(&answer).map_err(|_| {
            tracing::error!(bytes = answer.len(), "WeChat's answer cannot be read");
            GatewayError::from(Kind::WechatUnreachable)
        })?;
        match (answer.errcode, answer.openid) {
            (0, Some(openid)) if !openid.is_empty() && openid.len() <= 128 => Ok(openid),
            // Invalid code, code used before, user blocked for risk.
            (40029 | 40163 | 40226, _) => Err(Kind::WechatRefused.into()),
            // System busy, called too often.
            (errcode @ (-1 | 45011), _) => {
                tracing::warn!(errcode, "WeChat is busy");
                Err(Kind::Unavailable.into())
            }
            (errcode, _) => {
                tracing::error!(
                    errcode,
                    "WeChat refuses this gateway: check WECHAT_APP_ID and WECHAT_APP_SECRET"
                );
                Err(Kind::WechatUnreachable.into())
            }
        }
    }

    async fn ask(&self, url: url::Url) -> Result<Vec<u8>, reqwest::Error> {
        let mut response = self.client.get(url).send().await?.error_for_status()?;
        let mut answer = Vec::new();
        while let Some(piece) = response.chunk().await? {
            answer.extend_from_slice(&piece);
            if answer.len() > MAX_ANSWER {
                break;
            }
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Dur;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    fn wechat(url: &str, app: bool) -> Wechat {
        Wechat::new(&WechatSettings {
            wechat_app_id: app.then(|| "wx-app".to_owned()),
            wechat_app_secret: app.then(|| "hunter2".into()),
            wechat_api_url: url.to_owned(),
            wechat_timeout: Dur(Duration::from_secs(5)),
            wechat_tenants: Vec::new(),
        })
        .unwrap()
    }

    /// Answers one call with this body and returns the call's first line.
    async fn one_answer(body: &'static str) -> (String, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 4096];
            let count = stream.read(&mut head).await.unwrap();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&head[..count]).lines().next().unwrap_or_default().to_owned()
        });
        (url, task)
    }

    #[tokio::test]
    async fn a_code_becomes_an_openid() {
        let (url, asked) = one_answer(r#"{"openid":"o-1","session_key":"k"}"#).await;
        assert_eq!(wechat(&url, true).openid("c&d").await.unwrap(), "o-1");
        let line = asked.await.unwrap();
        let wanted = "appid=wx-app&secret=hunter2&js_code=c%26d&grant_type=authorization_code";
        assert!(line.starts_with("GET /sns/jscode2session?") && line.contains(wanted), "{line}");
    }

    #[tokio::test]
    async fn refusals_and_failures_have_their_own_answers() {
        for (body, kind) in [
            (r#"{"errcode":40029,"errmsg":"invalid code"}"#, Kind::WechatRefused),
            (r#"{"errcode":-1,"errmsg":"busy"}"#, Kind::Unavailable),
            (r#"{"errcode":40125,"errmsg":"invalid appsecret"}"#, Kind::WechatUnreachable),
            ("<html>", Kind::WechatUnreachable),
            ("{}", Kind::WechatUnreachable),
        ] {
            let (url, _asked) = one_answer(body).await;
            assert_eq!(wechat(&url, true).openid("c").await.unwrap_err().kind, kind, "{body}");
        }
        assert_eq!(
            wechat("http://127.0.0.1:9", false).openid("c").await.unwrap_err().kind,
            Kind::Unavailable
        );
        assert_eq!(
            wechat("http://127.0.0.1:9", true).openid("c").await.unwrap_err().kind,
            Kind::WechatUnreachable
        );
    }
}

//! E-mail: one kind so far, the link to a new password.
//!
//! With `SMTP_URL` it is sent by SMTP. Without, in development, the link is written to the log, so that the flow can
//! be tried with nothing installed; in production that would be a way in for whoever reads logs, so asking for a link
//! is refused there (503), and said at start.

use crate::settings::{Environment, MailSettings};
use lettre::message::{Mailbox, header::ContentType};
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use std::time::Duration;

/// How long the mail server may take to any answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where mail goes.
pub struct Mailer {
    way: Way,
    from: Mailbox,
    link: String,
}

enum Way {
    Smtp(Box<AsyncSmtpTransport<Tokio1Executor>>),
    Log,
    Nowhere,
}

/// Why mail cannot be set up or sent. Its text names no address and no secret.
#[derive(Debug, thiserror::Error)]
pub enum MailError {
    /// A setting is not what it must be.
    #[error("{0}")]
    Setting(&'static str),
    /// No mail server is set.
    #[error("no mail server is set: start the gateway with SMTP_URL (smtps://user:password@host)")]
    Nowhere,
    /// The address cannot be written to.
    #[error("the address cannot be written to: {0}")]
    Address(String),
    /// The mail server refused or does not answer.
    #[error("the mail server does not take it: {0}")]
    Server(#[from] lettre::transport::smtp::Error),
}

impl Mailer {
    /// By the process's settings.
    ///
    /// # Errors
    /// A setting that is malformed.
    pub fn new(settings: &MailSettings, environment: Environment) -> Result<Self, MailError> {
        let way = match (&settings.smtp_url, environment) {
            (Some(url), _) => {
                let builder = AsyncSmtpTransport::<Tokio1Executor>::from_url(url.reveal()).map_err(|_| {
                    MailError::Setting("SMTP_URL is not understood: write smtps://user:password@host[:port], or smtp://host:port?tls=required")
                })?;
                Way::Smtp(Box::new(builder.timeout(Some(PATIENCE)).build()))
            }
            (None, Environment::Development) => Way::Log,
            (None, Environment::Production) => Way::Nowhere,
        };
        let from = settings.mail_from.parse().map_err(|_| {
            MailError::Setting("MAIL_FROM is not understood: write `VoiceHelper <no-reply@example.com>`")
        })?;
        if !settings.password_reset_url.contains("{token}") {
            return Err(MailError::Setting("PASSWORD_RESET_URL must have `{token}` where the token goes"));
        }
        Ok(Mailer { way, from, link: settings.password_reset_url.clone() })
    }

    /// Whether mail can be sent, or in development written to the log.
    ///
    /// # Errors
    /// [`MailError::Nowhere`].
    pub fn check(&self) -> Result<(), MailError> {
        match self.way {
            Way::Nowhere => Err(MailError::Nowhere),
            _ => Ok(()),
        }
    }

    /// Sends the link to a new password.
    ///
    /// # Errors
    /// [`MailError`]; the caller is not to learn of it.
    pub async fn send_reset(
        &self,
        to: &str,
        username: &str,
        token: &str,
        minutes: u64,
    ) -> Result<(), MailError> {
        let link = self.link.replace("{token}", token);
        let smtp = match &self.way {
            Way::Smtp(smtp) => smtp,
            Way::Log => {
                tracing::warn!(username, link, "SMTP_URL is not set: this is the link to a new password");
                return Ok(());
            }
            Way::Nowhere => return Err(MailError::Nowhere),
        };
        let to: Mailbox = to.parse().map_err(|_| MailError::Address("it is not an e-mail address".into()))?;
        let text = format!(
            "{username}:\n\n\
             请打开以下链接设置新密码，链接在 {minutes} 分钟内有效，且只能使用一次：\n\
             Open this link to set a new password. It works once, within {minutes} minutes:\n\n\
             {link}\n\n\
             如果这不是您本人的操作，请忽略此邮件。\n\
             If you did not ask for it, ignore this message.\n"
        );
        let message = Message::builder()
            .from(self.from.clone())
            .to(to)
            .subject("VoiceHelper: 重置密码 / Reset your password")
            .header(ContentType::TEXT_PLAIN)
            .body(text)
            .map_err(|error| MailError::Address(error.to_string()))?;
        smtp.send(message).await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
    use tokio::net::TcpListener;

    fn settings(url: Option<&str>) -> MailSettings {
        MailSettings {
            smtp_url: url.map(Into::into),
            mail_from: "VoiceHelper <no-reply@example.com>".into(),
            password_reset_url: "https://app.example.com/reset#token={token}".into(),
        }
    }

    /// A mail server that takes one message and returns it.
    async fn take_one(listener: TcpListener) -> String {
        let (stream, _) = listener.accept().await.unwrap();
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        write.write_all(b"220 test\r\n").await.unwrap();
        let mut message = String::new();
        let mut inside = false;
        while let Some(line) = lines.next_line().await.unwrap() {
            let answer = match line.as_str() {
                "." if inside => {
                    write.write_all(b"250 taken\r\n").await.unwrap();
                    return message;
                }
                _ if inside => {
                    message.push_str(&line);
                    message.push('\n');
                    continue;
                }
                "DATA" => {
                    inside = true;
                    "354 go on"
                }
                _ => "250 fine",
            };
            write.write_all(format!("{answer}\r\n").as_bytes()).await.unwrap();
        }
        message
    }

    #[tokio::test]
    async fn the_link_goes_out_by_smtp() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("smtp://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(take_one(listener));
        let mailer = Mailer::new(&settings(Some(&url)), Environment::Production).unwrap();
        mailer.send_reset("ann@example.com", "ann", "abc123", 30).await.unwrap();
        let message = server.await.unwrap();
        assert!(message.contains("To: ann@example.com"), "{message}");
        assert!(message.contains("Subject:"), "{message}");
    }

    #[tokio::test]
    async fn production_without_a_mail_server_says_so() {
        let mailer = Mailer::new(&settings(None), Environment::Production).unwrap();
        assert!(matches!(mailer.check(), Err(MailError::Nowhere)));
        assert!(matches!(mailer.send_reset("a@b.cn", "a", "t", 30).await, Err(MailError::Nowhere)));
        let mailer = Mailer::new(&settings(None), Environment::Development).unwrap();
        assert!(mailer.check().is_ok() && mailer.send_reset("a@b.cn", "a", "t", 30).await.is_ok());
    }

    #[test]
    fn malformed_settings_are_told_without_their_secret() {
        let error = Mailer::new(&settings(Some("nonsense://user:hunter2@host")), Environment::Production)
            .err()
            .unwrap();
        assert!(!error.to_string().contains("hunter2"), "{error}");
        let mut without = settings(None);
        without.password_reset_url = "https://app.example.com/reset".into();
        assert!(Mailer::new(&without, Environment::Production).is_err());
    }
}

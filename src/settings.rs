//! What belongs to the process and needs a restart: addresses, secrets, limits of the door.
//!
//! Each setting is a flag and an environment variable with a default, shown by `--help`. Everything else is in
//! the manifest and hot-reloads.

mod shed;

pub use shed::{MemoryMark, ShedSettings};

use crate::units::{Dur, Size};
use clap::{Args, ValueEnum};
use ipnet::IpNet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// Settings of `serve`.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// The manifest
    #[arg(long, env = "VOICEGATE_CONFIG", default_value = "routes.yaml", value_name = "FILE")]
    pub config: PathBuf,

    /// Address that callers reach [default: 127.0.0.1:8080, or 0.0.0.0:$PORT where PORT is set]
    #[arg(long, env = "LISTEN", value_name = "ADDR")]
    pub listen: Option<SocketAddr>,

    /// Port that callers reach on every interface, where --listen is not given
    #[arg(long, env = "PORT", value_name = "PORT", hide = true)]
    pub port: Option<u16>,

    /// Address of the admin listener: health, metrics, admin API
    #[arg(long, env = "ADMIN_LISTEN", default_value = "127.0.0.1:9090", value_name = "ADDR")]
    pub admin_listen: SocketAddr,

    /// Token that admin calls which change something must carry (`Authorization: Bearer`); without one they are refused
    #[arg(long, env = "ADMIN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    pub admin_token: Option<Secret>,

    /// File that holds the admin token
    #[arg(long, env = "ADMIN_TOKEN_FILE", value_name = "FILE", conflicts_with = "admin_token")]
    pub admin_token_file: Option<PathBuf>,

    /// PEM file with the certificate chain; TLS is on with it
    #[arg(long, env = "TLS_CERT", value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// PEM file with the certificate's private key
    #[arg(long, env = "TLS_KEY", value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// Database: `sqlite://FILE` or `postgres://USER:PASSWORD@HOST/NAME` [default: sqlite://voicegate.db, or what
    /// POSTGRES_HOST, _PORT, _DB, _USER, _PASSWORD and _SSL_MODE say]
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL")]
    pub database_url: Option<Secret>,

    /// Redis that replicas share: `redis://`, `rediss://`, or several nodes of a cluster, comma-separated
    /// [default: this process's memory, or what REDIS_HOST, _PORT, _PASSWORD and _DB say]
    #[arg(long, env = "REDIS_URL", hide_env_values = true, value_name = "URL")]
    pub redis_url: Option<Secret>,

    /// Secret that tokens are signed with, at least 32 bytes [default: in development a random one]
    #[arg(long, env = "JWT_SECRET", hide_env_values = true, value_name = "SECRET")]
    pub jwt_secret: Option<Secret>,

    /// File that holds it
    #[arg(long, env = "JWT_SECRET_FILE", value_name = "FILE", conflicts_with = "jwt_secret")]
    pub jwt_secret_file: Option<PathBuf>,

    /// Earlier secrets whose tokens still count, comma-separated
    #[arg(
        long,
        env = "JWT_PREVIOUS_SECRETS",
        hide_env_values = true,
        value_delimiter = ',',
        value_name = "SECRETS"
    )]
    pub jwt_previous_secrets: Vec<Secret>,

    /// Verified tokens that are remembered
    #[arg(long, env = "TOKEN_CACHE", default_value_t = 16_384, value_name = "N")]
    pub token_cache: usize,

    /// Bytes of answers that are kept in memory for `cache` and `fallback`; `0B` keeps none
    #[arg(long, env = "CACHE_MAX_SIZE", default_value = "64MiB", value_name = "SIZE", value_parser = size)]
    pub cache_max_size: Size,

    /// Number of such answers
    #[arg(long, env = "CACHE_MAX_ENTRIES", default_value_t = 10_000, value_name = "N")]
    pub cache_max_entries: usize,

    /// Where the original's variables name the stores.
    #[command(flatten)]
    pub original: OriginalStores,

    /// Addresses or networks of proxies whose X-Forwarded-* are believed, comma-separated
    #[arg(long, env = "TRUSTED_PROXIES", value_delimiter = ',', value_name = "CIDR", value_parser = network)]
    pub trusted_proxies: Vec<IpNet>,

    /// Kind of installation; production refuses what development only warns about
    #[arg(long, env = "ENVIRONMENT", default_value = "development", value_name = "KIND")]
    pub environment: Environment,

    /// Least level that is logged: error, warn, info, debug, trace, or a filter such as `info,hyper=warn`
    #[arg(long, env = "LOG_LEVEL", default_value = "info", value_name = "LEVEL")]
    pub log_level: String,

    /// Form of log lines [default: pretty on a terminal, else json]
    #[arg(long, env = "LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,

    /// Log lines that wait while stderr is read slowly; what is beyond is dropped and counted
    #[arg(long, env = "LOG_BUFFER", default_value = "4MiB", value_name = "SIZE", value_parser = size)]
    pub log_buffer: Size,

    /// How long requests and streams in flight may take to finish after SIGTERM
    #[arg(long, env = "SHUTDOWN_GRACE", default_value = "30s", value_name = "DURATION", value_parser = duration)]
    pub shutdown_grace: Dur,

    /// How long to go on accepting after SIGTERM while readiness already says 503, for load balancers to notice
    #[arg(long, env = "DRAIN_DELAY", value_name = "DURATION", value_parser = duration)]
    pub drain_delay: Option<Dur>,

    /// How often the manifest's content is looked at, beside watching its folder
    #[arg(long, env = "RELOAD_POLL", default_value = "1s", value_name = "DURATION", value_parser = duration)]
    pub reload_poll: Dur,

    /// How often rows that are over (tokens, keys, deleted accounts) are removed from the database
    #[arg(long, env = "SWEEP_INTERVAL", default_value = "10m", value_name = "DURATION", value_parser = duration)]
    pub sweep_interval: Dur,

    /// Worker threads [default: one a core]
    #[arg(long, env = "WORKERS", value_name = "N")]
    pub workers: Option<usize>,

    /// Limits of the door.
    #[command(flatten)]
    pub door: DoorSettings,

    /// When less work is taken.
    #[command(flatten)]
    pub shed: ShedSettings,

    /// Limits of the stores.
    #[command(flatten)]
    pub stores: StoreSettings,

    /// Passwords, e-mail and WeChat.
    #[command(flatten)]
    pub accounts: AccountSettings,

    /// Sessions and messages.
    #[command(flatten)]
    pub conversations: ConversationSettings,
}

/// What conversations go by.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Conversations")]
pub struct ConversationSettings {
    /// How long a retry is known by its Idempotency-Key
    #[arg(long, env = "IDEMPOTENCY_TTL", default_value = "24h", value_name = "DURATION", value_parser = duration)]
    pub idempotency_ttl: Dur,

    /// How often what a running answer said is saved: so much is lost at most when the process is killed
    #[arg(long, env = "TURN_CHECKPOINT", default_value = "1s", value_name = "DURATION", value_parser = duration)]
    pub turn_checkpoint: Dur,

    /// How long a replica that says nothing is taken for alive; then its answers are closed as interrupted
    #[arg(long, env = "TURN_LEASE", default_value = "15s", value_name = "DURATION", value_parser = duration)]
    pub turn_lease: Dur,

    /// Memory for events of answers that are over and may be read again (`on_disconnect: finish`)
    #[arg(long, env = "RESUME_MEMORY", default_value = "64MiB", value_name = "SIZE", value_parser = size)]
    pub resume_memory: Size,

    /// Name of this process among its replicas; one that starts under the name of one that died closes what that
    /// left open [default: host name and port]
    #[arg(long, env = "REPLICA", value_name = "NAME")]
    pub replica: Option<String>,
}

/// What accounts need from outside.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Accounts")]
pub struct AccountSettings {
    /// Passwords that are hashed at a time [default: one a core]
    #[arg(long, env = "PASSWORD_WORKERS", value_name = "N")]
    pub password_workers: Option<usize>,

    /// Logins that may wait for a password worker; what is beyond is answered 503 [default: 8 a worker]
    #[arg(long, env = "PASSWORD_QUEUE", value_name = "N")]
    pub password_queue: Option<usize>,

    /// E-mail.
    #[command(flatten)]
    pub mail: MailSettings,

    /// WeChat.
    #[command(flatten)]
    pub wechat: WechatSettings,
}

/// Where mail goes.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Accounts")]
pub struct MailSettings {
    /// Mail server (`smtps://user:password@host`); without one, links to a new password are written to the log in development and refused in production
    #[arg(long, env = "SMTP_URL", hide_env_values = true, value_name = "URL")]
    pub smtp_url: Option<Secret>,

    /// Sender of mail
    #[arg(
        long,
        env = "MAIL_FROM",
        default_value = "VoiceHelper <no-reply@localhost>",
        value_name = "ADDRESS"
    )]
    pub mail_from: String,

    /// Page of the front end that sets a new password; `{token}` stands for the token
    #[arg(
        long,
        env = "PASSWORD_RESET_URL",
        default_value = "http://localhost:3000/reset-password#token={token}",
        value_name = "URL"
    )]
    pub password_reset_url: String,
}

/// The WeChat app whose users may log in.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Accounts")]
pub struct WechatSettings {
    /// The app's id
    #[arg(long, env = "WECHAT_APP_ID", value_name = "ID", requires = "wechat_app_secret")]
    pub wechat_app_id: Option<String>,

    /// The app's secret
    #[arg(long, env = "WECHAT_APP_SECRET", hide_env_values = true, value_name = "SECRET")]
    pub wechat_app_secret: Option<Secret>,

    /// WeChat's API
    #[arg(long, env = "WECHAT_API_URL", default_value = "https://api.weixin.qq.com", value_name = "URL")]
    pub wechat_api_url: String,

    /// How long WeChat may take to answer
    #[arg(long, env = "WECHAT_TIMEOUT", default_value = "5s", value_name = "DURATION", value_parser = duration)]
    pub wechat_timeout: Dur,

    /// Tenants that take new WeChat users by themselves, beside the default one, comma-separated
    #[arg(long, env = "WECHAT_TENANTS", value_delimiter = ',', value_name = "TENANT")]
    pub wechat_tenants: Vec<String>,
}

/// The original's variables; they count where DATABASE_URL and REDIS_URL are unset.
#[derive(Debug, Clone, Args)]
pub struct OriginalStores {
    /// Host of PostgreSQL
    #[arg(long, env = "POSTGRES_HOST", hide = true)]
    pub postgres_host: Option<String>,
    /// Port of PostgreSQL
    #[arg(long, env = "POSTGRES_PORT", default_value_t = 5432, hide = true)]
    pub postgres_port: u16,
    /// Name of the database
    #[arg(long, env = "POSTGRES_DB", default_value = "voicehelper", hide = true)]
    pub postgres_db: String,
    /// User of PostgreSQL
    #[arg(long, env = "POSTGRES_USER", default_value = "postgres", hide = true)]
    pub postgres_user: String,
    /// Password of PostgreSQL
    #[arg(long, env = "POSTGRES_PASSWORD", hide = true, hide_env_values = true)]
    pub postgres_password: Option<Secret>,
    /// `disable`, `require`, `verify-full`
    #[arg(long, env = "POSTGRES_SSL_MODE", hide = true)]
    pub postgres_ssl_mode: Option<String>,
    /// Host of Redis
    #[arg(long, env = "REDIS_HOST", hide = true)]
    pub redis_host: Option<String>,
    /// Port of Redis
    #[arg(long, env = "REDIS_PORT", default_value_t = 6379, hide = true)]
    pub redis_port: u16,
    /// Password of Redis
    #[arg(long, env = "REDIS_PASSWORD", hide = true, hide_env_values = true)]
    pub redis_password: Option<Secret>,
    /// Number of the database
    #[arg(long, env = "REDIS_DB", default_value_t = 0, hide = true)]
    pub redis_db: u32,
}

/// Limits on connections and requests before any route is known.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits")]
pub struct DoorSettings {
    /// Connections open at a time
    #[arg(long, env = "MAX_CONNECTIONS", default_value_t = 10_000, value_name = "N")]
    pub max_connections: usize,

    /// Until a request's head must have come
    #[arg(long, env = "HEADER_TIMEOUT", default_value = "10s", value_name = "DURATION", value_parser = duration)]
    pub header_timeout: Dur,

    /// How long an idle connection is kept
    #[arg(long, env = "KEEP_ALIVE", default_value = "75s", value_name = "DURATION", value_parser = duration)]
    pub keep_alive: Dur,

    /// How long a request's body may be silent, and over how much time that is waited for it its rate is taken
    #[arg(long, env = "BODY_TIMEOUT", default_value = "30s", value_name = "DURATION", value_parser = duration)]
    pub body_timeout: Dur,

    /// Bytes a second that a request's body must come with; `0B` for any
    #[arg(long, env = "MIN_BODY_RATE", default_value = "240B", value_name = "SIZE", value_parser = size)]
    pub min_body_rate: Size,

    /// How long a client may read nothing while there is something to send
    #[arg(long, env = "WRITE_TIMEOUT", default_value = "30s", value_name = "DURATION", value_parser = duration)]
    pub write_timeout: Dur,

    /// Size of a request's head
    #[arg(long, env = "MAX_HEADER_SIZE", default_value = "32KiB", value_name = "SIZE", value_parser = size)]
    pub max_header_size: Size,

    /// Size of a request's body, where a route sets no `body_limit`
    #[arg(long, env = "MAX_BODY_SIZE", default_value = "10MiB", value_name = "SIZE", value_parser = size)]
    pub max_body_size: Size,

    /// Streams open at a time on an HTTP/2 connection
    #[arg(long, env = "MAX_H2_STREAMS", default_value_t = 256, value_name = "N")]
    pub max_h2_streams: u32,
}

/// How much the database and Redis may take: connections, time, memory.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Stores")]
pub struct StoreSettings {
    /// Connections to the database; on SQLite, of readers, and no more of them than there are cores
    #[arg(long, env = "DB_MAX_CONNECTIONS", default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub db_max_connections: u32,

    /// How long a call waits for a connection to the database
    #[arg(long, env = "DB_ACQUIRE_TIMEOUT", default_value = "2s", value_name = "DURATION", value_parser = duration)]
    pub db_acquire_timeout: Dur,

    /// How long one statement may run, held by PostgreSQL itself; on SQLite, how long it waits for another process
    #[arg(long, env = "DB_STATEMENT_TIMEOUT", default_value = "3s", value_name = "DURATION", value_parser = duration)]
    pub db_statement_timeout: Dur,

    /// How long a call to the database may take in all
    #[arg(long, env = "DB_CALL_TIMEOUT", default_value = "5s", value_name = "DURATION", value_parser = duration)]
    pub db_call_timeout: Dur,

    /// How long a call to Redis may take, until this process decides alone. There is no pool to size: calls share one
    /// connection without waiting for each other
    #[arg(long, env = "REDIS_TIMEOUT", default_value = "50ms", value_name = "DURATION", value_parser = duration)]
    pub redis_timeout: Dur,

    /// Callers whose rate limits are counted in memory, about 100 bytes each; beyond, the stalest are forgotten
    #[arg(long, env = "LIMITER_KEYS", default_value_t = 10_000_000, value_name = "N")]
    pub limiter_keys: usize,
}

/// Kind of installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Environment {
    /// A developer's machine.
    Development,
    /// Anything that real callers reach.
    Production,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Pretty,
}

/// A secret: never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text, where it is needed.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Secret(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl Settings {
    /// Where callers reach the gateway.
    pub fn listen_address(&self) -> SocketAddr {
        match (self.listen, self.port) {
            (Some(address), _) => address,
            (None, Some(port)) => ([0, 0, 0, 0], port).into(),
            (None, None) => ([127, 0, 0, 1], 8080).into(),
        }
    }

    /// The database; its password is in it.
    pub fn database(&self) -> Secret {
        database(self.database_url.as_ref(), &self.original)
    }

    /// What replicas share, if they do; its password is in it.
    pub fn redis(&self) -> Option<Secret> {
        let original = &self.original;
        match (&self.redis_url, &original.redis_host) {
            (Some(url), _) => Some(url.clone()),
            (None, Some(host)) => {
                let password = login(original.redis_password.as_ref());
                let at = if password.is_empty() { "" } else { "@" };
                let (port, db) = (original.redis_port, original.redis_db);
                Some(Secret(format!("redis://{password}{at}{}:{port}/{db}", bracketed(host))))
            }
            (None, None) => None,
        }
    }

    /// Whether a proxy's word counts.
    pub fn trusts(&self, proxy: IpAddr) -> bool {
        let proxy = proxy.to_canonical();
        self.trusted_proxies.iter().any(|network| network.contains(&proxy))
    }
}

/// `:PASSWORD` for a URL, or nothing.
fn login(password: Option<&Secret>) -> String {
    let password = password.map(Secret::reveal).filter(|password| !password.is_empty());
    password.map(|password| format!(":{}", escaped(password))).unwrap_or_default()
}

/// Percent-encoded for any part of a URL (RFC 3986, section 2.3).
fn escaped(text: &str) -> String {
    let mut whole = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                whole.push(char::from(byte))
            }
            _ => whole.push_str(&format!("%{byte:02X}")),
        }
    }
    whole
}

/// IPv6 addresses stand in brackets.
fn bracketed(host: &str) -> String {
    match host.parse::<std::net::Ipv6Addr>() {
        Ok(address) => format!("[{address}]"),
        Err(_) => host.to_owned(),
    }
}

/// The URL of a SQLite file, whatever its path is made of.
pub fn sqlite_url(path: &Path) -> Secret {
    Secret(format!("sqlite://{}", escaped(&path.to_string_lossy())))
}

/// The database by its URL, else by the original's variables, else a file here; its password is in it.
pub fn database(url: Option<&Secret>, original: &OriginalStores) -> Secret {
    match (url, &original.postgres_host) {
        (Some(url), _) => url.clone(),
        (None, Some(host)) => {
            let name = escaped(&original.postgres_db);
            let user = escaped(&original.postgres_user);
            let password = login(original.postgres_password.as_ref());
            let mode = original.postgres_ssl_mode.as_ref();
            let mode = mode.map(|mode| format!("?sslmode={}", escaped(mode))).unwrap_or_default();
            let port = original.postgres_port;
            Secret(format!("postgres://{user}{password}@{}:{port}/{name}{mode}", bracketed(host)))
        }
        (None, None) => "sqlite://voicegate.db".into(),
    }
}

fn duration(text: &str) -> Result<Dur, String> {
    Dur::parse(text).ok_or_else(|| "a duration has its unit, such as `500ms`, `30s` or `5m`".to_owned())
}

fn size(text: &str) -> Result<Size, String> {
    Size::parse(text).ok_or_else(|| "a size has its unit, such as `8KiB` or `10MiB`".to_owned())
}

fn network(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| "an address or network, such as `10.0.0.0/8`".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        settings: Settings,
    }

    fn parse(args: &[&str]) -> Settings {
        Cli::try_parse_from(std::iter::once(&"x").chain(args)).unwrap().settings
    }

    #[test]
    fn addresses_have_defaults_and_honour_port() {
        assert_eq!(parse(&[]).listen_address().to_string(), "127.0.0.1:8080");
        assert_eq!(parse(&["--port", "9"]).listen_address().to_string(), "0.0.0.0:9");
        assert_eq!(parse(&["--port", "9", "--listen", "127.0.0.1:7"]).listen_address().port(), 7);
    }

    #[test]
    fn proxies_are_addresses_or_networks() {
        let settings = parse(&["--trusted-proxies", "10.0.0.0/8, 192.0.2.7"]);
        assert!(settings.trusts("10.1.2.3".parse().unwrap()));
        assert!(settings.trusts("::ffff:10.1.2.3".parse().unwrap()), "mapped IPv4 counts as IPv4");
        assert!(settings.trusts("192.0.2.7".parse().unwrap()));
        assert!(!settings.trusts("192.0.2.8".parse().unwrap()));
    }

    #[test]
    fn stores_are_urls_or_the_originals_variables() {
        let settings = parse(&[]);
        assert_eq!(settings.database().reveal(), "sqlite://voicegate.db");
        assert_eq!(settings.redis(), None);
        let original = parse(&[
            "--postgres-host=db",
            "--postgres-password=p@ss/1",
            "--postgres-ssl-mode=require",
            "--redis-host=::1",
            "--redis-password=a:b",
            "--redis-db=2",
        ]);
        let database = original.database();
        assert_eq!(database.reveal(), "postgres://postgres:p%40ss%2F1@db:5432/voicehelper?sslmode=require");
        assert_eq!(original.redis().unwrap().reveal(), "redis://:a%3Ab@[::1]:6379/2");
        assert!(!format!("{original:?}").contains("p@ss"));
        let both = parse(&["--database-url=postgres://x/y", "--postgres-host=db", "--redis-host=r"]);
        assert_eq!(both.database().reveal(), "postgres://x/y");
        assert_eq!(both.redis().unwrap().reveal(), "redis://r:6379/0");
    }

    #[test]
    fn secrets_are_not_printed() {
        let settings = parse(&["--admin-token", "hush"]);
        assert!(!format!("{settings:?}").contains("hush"));
        assert_eq!(settings.admin_token.unwrap().reveal(), "hush");
    }
}

//! `voicegate serve`: runs the gateway; with `--demo`, with everything it needs in the same process.

use super::{FINDINGS, OK, say};
use crate::demo::{Demo, Folder};
use crate::serve::limits::reserve_files;
use crate::serve::run::{Signals, StartError, start, until_told};
use crate::settings::{Environment, Settings, sqlite_url};
use crate::telemetry::Telemetry;
use crate::telemetry::logs::{self, LogGuard};
use clap::Args;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::runtime::{Builder, Runtime};

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub(super) struct Serve {
    #[command(flatten)]
    settings: Settings,

    /// Starts stand-ins for the services behind the gateway in the same process, and says what to try
    #[arg(long)]
    demo: bool,
}

pub(super) fn run(command: Serve) -> u8 {
    reserve_files(command.settings.door.max_connections);
    let guard = match logs::init(&command.settings) {
        Ok(guard) => guard,
        Err(error) => {
            say(&format!("error: {error}"));
            return super::USAGE;
        }
    };
    let code = match runtime(command.settings.workers) {
        Ok(runtime) => runtime.block_on(serve(command, &guard)),
        Err(error) => {
            say(&format!("error: the runtime cannot start: {error}"));
            super::USAGE
        }
    };
    drop(guard);
    code
}

/// Sockets that one look at them reports at most, where there is one worker. What a task reads and what it wakes must still be in the
/// core's cache when it runs: with a thousand ready at once (tokio's default is 1,024) each waited behind all others, at twice the
/// cost an event. tokio looks again after 61 tasks: these, and the one that each may wake, are through by then.
const SOCKETS_AT_ONCE: usize = 24;

/// One worker needs no other to be able to take its work over, and does without what that costs.
fn runtime(workers: Option<usize>) -> std::io::Result<Runtime> {
    let mut builder = match workers {
        Some(0 | 1) => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    match workers {
        Some(0 | 1) => builder.max_io_events_per_tick(SOCKETS_AT_ONCE),
        Some(workers) => builder.worker_threads(workers),
        None => &mut builder,
    };
    builder.enable_all().build()
}

async fn serve(command: Serve, log: &LogGuard) -> u8 {
    let Serve { mut settings, demo } = command;
    let signals = match Signals::watch() {
        Ok(signals) => signals,
        Err(error) => {
            say(&format!("error: signals cannot be watched: {error}"));
            return FINDINGS;
        }
    };
    let mut variables = BTreeMap::new();
    let mut kept = None;
    if demo {
        match demonstration(&mut settings, &mut variables).await {
            Ok(services) => kept = Some(services),
            Err(error) => {
                say(&format!("error: the demo cannot start: {error}"));
                return FINDINGS;
            }
        }
    }
    let telemetry = match Telemetry::start(env!("CARGO_PKG_VERSION"), log) {
        Ok(telemetry) => Arc::new(telemetry),
        Err(error) => {
            say(&format!("error: {error}"));
            return FINDINGS;
        }
    };
    let running = match start(settings, telemetry, variables).await {
        Ok(running) => running,
        Err(error @ StartError::Unsound(_)) => {
            say(&error.to_string());
            return FINDINGS;
        }
        Err(error) => {
            say(&format!("error: {error}"));
            return FINDINGS;
        }
    };
    tracing::info!(address = %running.address, admin = %running.admin_address, "listening");
    if let Some(kept) = &kept {
        let config = running.live.config().display().to_string();
        let (address, admin) = (running.address.to_string(), running.admin_address.to_string());
        say(&what_to_try(&address, &admin, &config, kept.database.as_deref()));
    }
    until_told(running, signals).await;
    drop(kept);
    OK
}

/// The stand-in services, and the folder of what is not at hand.
struct Demonstration {
    _services: Demo,
    _folder: Option<Folder>,
    /// Where users are, if they go with the demo.
    database: Option<PathBuf>,
}

async fn demonstration(
    settings: &mut Settings,
    variables: &mut BTreeMap<String, String>,
) -> std::io::Result<Demonstration> {
    let services = Demo::start_signing(&shared_secret(settings)?).await?;
    for service in ["ALGO", "AUTH", "DOCUMENT", "SESSION", "NOTIFICATION"] {
        variables.insert(format!("{service}_SERVICE_URL"), services.url());
    }
    if std::env::var_os("LOGIN_LIMIT").is_none() {
        // Whoever tries the lockout shall meet it before the limit.
        variables.insert("LOGIN_LIMIT".to_owned(), "20".to_owned());
    }
    let wechat = &mut settings.accounts.wechat;
    if wechat.wechat_app_id.is_none() {
        wechat.wechat_app_id = Some("demo".to_owned());
        wechat.wechat_app_secret = Some("demo".into());
        wechat.wechat_api_url = services.url();
    }
    let without_manifest = !settings.config.exists() && settings.config.as_os_str() == "routes.yaml";
    let without_database = settings.database_url.is_none() && settings.original.postgres_host.is_none();
    let folder = match without_manifest || without_database {
        true => Some(Folder::make(&std::env::temp_dir())?),
        false => None,
    };
    let mut database = None;
    if let Some(folder) = &folder {
        if without_manifest {
            settings.config = folder.write_manifest()?;
        }
        if without_database {
            let path = folder.path().join("voicegate.db");
            settings.database_url = Some(sqlite_url(&path));
            database = Some(path);
        }
    }
    Ok(Demonstration { _services: services, _folder: folder, database })
}

/// What the gateway and the stand-in for the auth service both sign with; made up where none is set.
fn shared_secret(settings: &mut Settings) -> std::io::Result<Vec<u8>> {
    if let Some(file) = &settings.jwt_secret_file {
        return Ok(std::fs::read_to_string(file)?.trim().into());
    }
    let missing = settings.jwt_secret.as_ref().is_none_or(|secret| secret.reveal().trim().is_empty());
    // In production the start is refused without one, demo or not.
    if missing && settings.environment != Environment::Production {
        let made = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
        settings.jwt_secret = Some(made.as_str().into());
    }
    let secret = settings.jwt_secret.as_ref().map(|secret| secret.reveal().trim());
    Ok(secret.unwrap_or_default().into())
}

fn what_to_try(address: &str, admin: &str, config: &str, database: Option<&Path>) -> String {
    let users = match database {
        Some(path) => {
            format!("Users are kept in {} until it stops; DATABASE_URL keeps them.\n", path.display())
        }
        None => String::new(),
    };
    format!(
        r#"
voicegate is up, with stand-ins for the services behind it. Open http://{address}/docs in a browser: what there is,
with a form to try it. Or type:

  curl http://{address}/openapi.json -o openapi.json   # and `voicegate client ts` makes a client of it
  curl http://{address}/health
  curl http://{address}/api/v01/auth/register -H 'Content-Type: application/json' \
       -d '{{"username": "ann", "email": "ann@example.com", "password": "Gateway1"}}'
  TOKEN=$(curl -s http://{address}/api/v01/auth/login -H 'Content-Type: application/json' \
       -d '{{"username": "ann", "password": "Gateway1"}}' | sed 's/.*"access_token":"\([^"]*\)".*/\1/')
  SESSION=$(curl -s http://{address}/api/v01/sessions -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' \
       -d '{{"title": "Gateways"}}' | sed 's/.*"session_id":"\([^"]*\)".*/\1/')
  curl -N http://{address}/api/v01/chat/stream -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' \
       -d "{{\"query\": \"Tell me about gateways\", \"session_id\": \"$SESSION\"}}"
  curl http://{address}/api/v01/sessions/$SESSION/messages -H "Authorization: Bearer $TOKEN"
  curl -s http://{address}/api/v01/voice/synthesize -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' \
       -d '{{"text": "Hello"}}' | curl http://{address}/api/v01/voice/transcribe -H "Authorization: Bearer $TOKEN" -F 'audio=@-;type=audio/wav'
  curl -X POST http://{address}/api/v01/auth/ws-ticket -H "Authorization: Bearer $TOKEN"   # opens ws://{address}/api/v2/voice/stream?ticket=…
  curl http://{address}/api/v01/documents -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' \
       -d '{{"title": "Notes", "content": "A gRPC service keeps this"}}'
  curl -N "http://{address}/api/v01/documents/watch?existing=true&max_events=1" -H "Authorization: Bearer $TOKEN"
  curl -i http://{address}/nowhere -H 'Accept-Language: zh'
  curl 'http://{admin}/readyz?verbose'
  curl http://{admin}/metrics

Edit {config} while it runs: it is taken over when you save. Ctrl-C stops.
{users}"#
    )
}

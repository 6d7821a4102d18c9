//! `voicegate serve`: runs the gateway; with `--demo`, with everything it needs in the same process.

use super::{FINDINGS, OK, say};
use crate::demo::Demo;
use crate::serve::run::{Signals, StartError, start, until_told};
use crate::settings::Settings;
use crate::telemetry::Telemetry;
use crate::telemetry::logs::{self, LogGuard};
use clap::Args;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

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
    let guard = match logs::init(&command.settings) {
        Ok(guard) => guard,
        Err(error) => {
            say(&format!("error: {error}"));
            return super::USAGE;
        }
    };
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.enable_all();
    if let Some(workers) = command.settings.workers {
        runtime.worker_threads(workers.max(1));
    }
    let code = match runtime.build() {
        Ok(runtime) => runtime.block_on(serve(command, &guard)),
        Err(error) => {
            say(&format!("error: the runtime cannot start: {error}"));
            super::USAGE
        }
    };
    drop(guard);
    code
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
    if demo {
        let config = running.live.config().display().to_string();
        say(&what_to_try(&running.address.to_string(), &running.admin_address.to_string(), &config));
    }
    until_told(running, signals).await;
    drop(kept);
    OK
}

/// The stand-in services, and the folder of the manifest where none is at hand.
struct Demonstration {
    _services: Demo,
    _folder: Option<Folder>,
}

/// A folder that goes with its holder.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The shipped manifest, for a demo that is started anywhere.
const SHIPPED: &[(&str, &str)] = &[
    ("routes.yaml", include_str!("../../routes.yaml")),
    ("policies/auth.yaml", include_str!("../../policies/auth.yaml")),
    ("policies/rbac.yaml", include_str!("../../policies/rbac.yaml")),
    ("policies/chains.yaml", include_str!("../../policies/chains.yaml")),
    ("policies/cors.yaml", include_str!("../../policies/cors.yaml")),
    ("policies/rate-limits.yaml", include_str!("../../policies/rate-limits.yaml")),
];

async fn demonstration(
    settings: &mut Settings,
    variables: &mut BTreeMap<String, String>,
) -> std::io::Result<Demonstration> {
    let services = Demo::start().await?;
    variables.insert("ALGO_SERVICE_URL".to_owned(), services.url());
    let wechat = &mut settings.accounts.wechat;
    if wechat.wechat_app_id.is_none() {
        wechat.wechat_app_id = Some("demo".to_owned());
        wechat.wechat_app_secret = Some("demo".into());
        wechat.wechat_api_url = services.url();
    }
    let mut folder = None;
    if !settings.config.exists() && settings.config.as_os_str() == "routes.yaml" {
        let path = std::env::temp_dir().join(format!("voicegate-demo-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(path.join("policies"))?;
        for (name, text) in SHIPPED {
            std::fs::write(path.join(name), text)?;
        }
        settings.config = path.join("routes.yaml");
        folder = Some(Folder(path));
    }
    Ok(Demonstration { _services: services, _folder: folder })
}

fn what_to_try(address: &str, admin: &str, config: &str) -> String {
    format!(
        r#"
voicegate is up, with a stand-in for the algorithm service behind it. Try:

  curl http://{address}/health
  curl http://{address}/api/v01/auth/register -H 'Content-Type: application/json' \
       -d '{{"username": "ann", "email": "ann@example.com", "password": "Gateway1"}}'
  TOKEN=$(curl -s http://{address}/api/v01/auth/login -H 'Content-Type: application/json' \
       -d '{{"username": "ann", "password": "Gateway1"}}' | sed 's/.*"access_token":"\([^"]*\)".*/\1/')
  curl -N http://{address}/api/v2/chat/stream -H "Authorization: Bearer $TOKEN" -H 'Content-Type: application/json' \
       -d '{{"query": "Tell me about gateways", "session_id": "demo"}}'
  curl -i http://{address}/nowhere -H 'Accept-Language: zh'
  curl 'http://{admin}/readyz?verbose'
  curl http://{admin}/metrics

Edit {config} while it runs: it is taken over when you save. Ctrl-C stops.
"#
    )
}

//! A gateway in this process, on ports of its own, with a manifest in a folder of its own.

use super::Client;
use clap::Parser;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use voicegate::serve::live::Live;
use voicegate::serve::run::{Running, StartError, start};
use voicegate::settings::Settings;
use voicegate::telemetry::Telemetry;
use voicegate::telemetry::logs::{LogGuard, init};

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
}

/// A gateway that is up.
pub struct Gateway {
    running: Option<Running>,
    pub client: Client,
    pub admin: Client,
    folder: tempfile::TempDir,
}

/// What a gateway is made of.
pub struct Builder {
    folder: tempfile::TempDir,
    variables: BTreeMap<String, String>,
    flags: Vec<String>,
}

impl Gateway {
    /// With this as its `routes.yaml`; `version: 1` is put before it.
    pub fn with(manifest: &str) -> Builder {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("routes.yaml"), whole(manifest)).unwrap();
        Builder { folder, variables: BTreeMap::new(), flags: Vec::new() }
    }

    pub fn live(&self) -> &Arc<Live> {
        &self.running().live
    }

    fn running(&self) -> &Running {
        self.running.as_ref().expect("the gateway runs until it is shut down")
    }

    /// A file in the manifest's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the manifest anew, in place.
    pub fn rewrite(&self, manifest: &str) {
        std::fs::write(self.path("routes.yaml"), whole(manifest)).unwrap();
    }

    /// Number of the revision that serves.
    pub fn revision(&self) -> u64 {
        self.live().shared().readiness.revision().map_or(0, |revision| revision.number)
    }

    /// Shuts down in order; returns the number of connections that were cut.
    pub async fn shut_down(mut self) -> usize {
        self.running.take().expect("only once").shut_down().await
    }

    /// Takes the running gateway out, to shut it down on another task.
    pub fn take(&mut self) -> Running {
        self.running.take().expect("only once")
    }
}

fn whole(manifest: &str) -> String {
    format!("version: 1\n{manifest}")
}

impl Builder {
    /// A further file beside `routes.yaml`.
    pub fn file(self, name: &str, text: &str) -> Self {
        let path = self.folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    /// A variable of `${…}`.
    pub fn var(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.insert(name.to_owned(), value.into());
        self
    }

    /// A flag of `serve` with its value.
    pub fn flag(mut self, name: &str, value: &str) -> Self {
        self.flags.push(format!("{name}={value}"));
        self
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub async fn start(self) -> Gateway {
        self.try_start().await.unwrap_or_else(|error| panic!("the gateway does not start: {error}"))
    }

    pub async fn try_start(self) -> Result<Gateway, StartError> {
        let config = self.folder.path().join("routes.yaml");
        let mut arguments = vec![
            "test".to_owned(),
            format!("--config={}", config.display()),
            "--listen=127.0.0.1:0".to_owned(),
            "--admin-listen=127.0.0.1:0".to_owned(),
            "--admin-token=admin-secret".to_owned(),
            "--reload-poll=200ms".to_owned(),
            format!("--database-url=sqlite://{}", self.folder.path().join("gateway.db").display()),
        ];
        for flag in self.flags {
            let name = flag.split('=').next().unwrap().to_owned();
            arguments.retain(|known| !known.starts_with(&format!("{name}=")));
            arguments.push(flag);
        }
        let settings = Cli::parse_from(arguments).settings;
        let telemetry = Arc::new(Telemetry::start("test", &logs().lock().unwrap()).unwrap());
        let running = start(settings, telemetry, self.variables).await?;
        let (client, admin) = (Client::new(running.address), Client::new(running.admin_address));
        Ok(Gateway { running: Some(running), client, admin, folder: self.folder })
    }
}

/// Logs of all gateways in this process, to stderr; `TEST_LOG=debug` shows more than errors.
fn logs() -> &'static Mutex<LogGuard> {
    static GUARD: OnceLock<Mutex<LogGuard>> = OnceLock::new();
    GUARD.get_or_init(|| {
        let level = std::env::var("TEST_LOG").unwrap_or_else(|_| "off".to_owned());
        let settings = Cli::parse_from(["test", &format!("--log-level={level}")]).settings;
        Mutex::new(init(&settings).unwrap())
    })
}

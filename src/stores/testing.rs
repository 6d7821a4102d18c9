//! A PostgreSQL for tests, that nothing of the machine's touches: its own folder, its own port, gone with the tests.
//!
//! A shell watches over the server and reads commands from a pipe. When the tests end, however they end, the pipe
//! closes; the shell then stops the server and removes the folder. Only `std`, so that other test binaries can
//! include this file by its path.

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// Name and password of its superuser.
pub(super) const USER: &str = "voicegate";
/// The password; errors are searched for it.
pub(super) const PASSWORD: &str = "s3cret-of-the-tests";

/// Runs as the server's user. Arguments: the folder of programs, the server's own folder.
const WATCH: &str = r#"
bin=$1 dir=$2 pid=
export LC_ALL=C
# What the caller of the tests left open (a lock, a pipe) is not the server's to hold.
exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-
cd "$dir" || exit 1
"$bin/initdb" -D data -U voicegate --pwfile=password --auth=password -E UTF8 --locale=C --no-sync >initdb.log 2>&1 ||
    { mv initdb.log failed; exit 1; }
: >made
while read -r word port; do
    case $word in
    start)
        "$bin/postgres" -D data -p "$port" -k "" -h 127.0.0.1 -F -c max_connections=400 -c shared_buffers=32MB \
            -c synchronous_commit=off -c full_page_writes=off >server.log 2>&1 </dev/null &
        pid=$!
        ;;
    stop)
        kill -INT "$pid"
        wait "$pid"
        : >stopped
        ;;
    esac
done
# Not once: a server that is only starting ignores it, as what a shell runs in the background does.
tries=0
while [ -n "$pid" ] && kill -QUIT "$pid" 2>/dev/null; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] || kill -KILL "$pid"
    sleep 0.1
done
cd / && rm -rf "$dir"
"#;

/// A running server.
pub(super) struct Server {
    watch: Mutex<Child>,
    dir: PathBuf,
    port: u16,
}

/// The server that the tests of this binary share; started by the first who asks.
///
/// # Panics
/// Where PostgreSQL is not installed; the message names the package.
pub(super) fn shared_server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(Server::start)
}

impl Server {
    /// Starts one of its own, for tests that stop it.
    pub(super) fn start() -> Self {
        let bin = programs().unwrap_or_else(|| {
            panic!(
                "these tests start a PostgreSQL of their own, and no folder holds both `initdb` and `postgres` \
                 (searched /usr/lib/postgresql/*/bin, PATH, /usr/local/bin): install the package `postgresql`"
            )
        });
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("voicegate-pg-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("password"), PASSWORD).unwrap();

        let mut command = as_ordinary_user(&dir);
        command.args(["sh", "-c", WATCH, "sh"]).arg(&bin).arg(&dir);
        // A group of its own: Ctrl-C in a terminal ends the tests, and only then, by the pipe, the server.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let watch =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut server = Server { watch: Mutex::new(watch), dir, port: 0 };

        server.wait("initdb", |dir| {
            if let Ok(log) = std::fs::read_to_string(dir.join("failed")) {
                panic!("initdb failed:\n{log}");
            }
            dir.join("made").exists()
        });
        // A port that is free now may be taken in a moment: then another.
        for _ in 0..5 {
            server.port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            if server.resume() {
                return server;
            }
        }
        panic!("PostgreSQL did not start:\n{}", server.log());
    }

    /// Stops it, as for a restart: clients are cut off.
    pub(super) fn stop(&self) {
        let _ = std::fs::remove_file(self.dir.join("stopped"));
        self.tell("stop");
        self.wait("stop", |dir| dir.join("stopped").exists());
    }

    /// Starts it again where it was; whether it came up.
    pub(super) fn resume(&self) -> bool {
        let _ = std::fs::remove_file(self.dir.join("server.log"));
        self.tell(&format!("start {}", self.port));
        let mut up = false;
        self.wait("start", |dir| {
            // The eighth line says how far it is.
            let pid_file = std::fs::read_to_string(dir.join("data/postmaster.pid")).unwrap_or_default();
            up = pid_file.lines().nth(7).is_some_and(|state| state.trim() == "ready");
            up || self.log().contains("FATAL")
        });
        up
    }

    /// URL of one of its databases.
    pub(super) fn url(&self, database: &str) -> String {
        format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// A name for a database that no other test of this binary uses.
    pub(super) fn fresh_name() -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        format!("t{}", COUNT.fetch_add(1, Ordering::Relaxed))
    }

    fn tell(&self, words: &str) {
        let mut watch = self.watch.lock().unwrap();
        writeln!(watch.stdin.as_mut().unwrap(), "{words}").unwrap();
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("server.log")).unwrap_or_default()
    }

    fn wait(&self, what: &str, mut done: impl FnMut(&Path) -> bool) {
        let start = Instant::now();
        while !done(&self.dir) {
            assert!(start.elapsed() < Duration::from_secs(60), "{what} takes too long:\n{}", self.log());
            pause();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut watch = self.watch.lock().unwrap();
        drop(watch.stdin.take());
        let _ = watch.wait();
    }
}

/// The folder with PostgreSQL's programs: the newest of Debian's, else one on the PATH.
pub(super) fn programs() -> Option<PathBuf> {
    let mut debian: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|version| Some((version.file_name().to_str()?.parse().ok()?, version.path().join("bin"))))
        .collect();
    debian.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let others = std::env::split_paths(&path).chain([PathBuf::from("/usr/local/bin")]);
    debian
        .into_iter()
        .rev()
        .map(|(_, folder)| folder)
        .chain(others)
        .find(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file())
}

/// A command that runs what is added to it as somebody who is not root, which PostgreSQL refuses; `dir` becomes his.
fn as_ordinary_user(dir: &Path) -> Command {
    let id = |of: &[&str]| {
        let output = Command::new("id").args(of).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    if id(&["-u"]) != "0" {
        return Command::new("env");
    }
    let user = ["postgres", "nobody"].into_iter().find(|user| !id(&["-u", user]).is_empty());
    let user = user.expect("the tests run as root and there is neither a user `postgres` nor `nobody`");
    let (uid, gid) = (id(&["-u", user]), id(&["-g", user]));
    for path in [dir.to_owned(), dir.join("password")] {
        std::os::unix::fs::chown(path, uid.parse().ok(), gid.parse().ok()).unwrap();
    }
    let exists = |program: &str| Command::new(program).arg("--version").output().is_ok();
    if exists("setpriv") {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &uid, "--regid", &gid, "--clear-groups", "--"]);
        command
    } else if exists("runuser") {
        let mut command = Command::new("runuser");
        command.args(["-u", user, "--"]);
        command
    } else {
        panic!(
            "the tests run as root, which PostgreSQL refuses, and neither `setpriv` nor `runuser` is installed"
        )
    }
}

#[expect(clippy::disallowed_methods, reason = "waits for another process, outside any runtime's work")]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}

//! `voicegate admin`: what must be possible before anybody can log in, or when nobody can any more. Works on the
//! database; a gateway need not run, and one that runs learns of it within a second.

use super::database::{DatabaseArgs, run as run_with};
use super::{FINDINGS, OK, USAGE, print, say};
use crate::accounts::{ADMIN_ROLE, Accounts, Authority, DEFAULT_ROLE, NewAdmin, Rules, SetupError};
use crate::conversations::Export;
use crate::error::{GatewayError, Kind, Lang};
use crate::identity::Identity;
use crate::manifest;
use crate::settings::{AccountSettings, Environment};
use crate::stores::{AnyStore, Stored, User};
use clap::{Args, Parser, Subcommand};
use rand::Rng;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Who does it, as the log is told.
const BY: &str = "command line";
/// Characters of a password that is made here: 119 bits.
const PASSWORD_LENGTH: usize = 20;

/// Arguments of `admin`.
#[derive(Debug, Args)]
pub(super) struct Admin {
    #[command(subcommand)]
    act: Act,

    #[command(flatten)]
    database: DatabaseArgs,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// Makes a user with the role `admin`, and prints its password where none is given
    Create {
        /// 3 to 50 letters, digits and underscores
        username: String,
        /// For links to a new password
        #[arg(long)]
        email: String,
        /// File that holds the password; `-` for stdin [default: one is made and printed]
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Forgets failed logins and lock of a name
    Unlock {
        /// Whatever the case
        username: String,
        /// Its tenant [default: the default one]
        #[arg(long, default_value = "", hide_default_value = true)]
        tenant: String,
    },
    /// Gives a user a role, and ends its sessions
    Role {
        /// Whatever the case
        username: String,
        /// Name of a role in the manifest
        role: String,
        /// Its tenant [default: the default one]
        #[arg(long, default_value = "", hide_default_value = true)]
        tenant: String,
        /// Manifest that must define the role [default: none is asked]
        #[arg(long, env = "VOICEGATE_CONFIG", value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// Writes a user's sessions with all their messages to stdout, as JSON
    Export {
        /// Whatever the case
        username: String,
        /// Its tenant [default: the default one]
        #[arg(long, default_value = "", hide_default_value = true)]
        tenant: String,
    },
    /// Deletes a user with all that belongs to it, for good
    Delete {
        /// Whatever the case
        username: String,
        /// Its tenant [default: the default one]
        #[arg(long, default_value = "", hide_default_value = true)]
        tenant: String,
        /// Does not ask; needed where there is no terminal to ask on
        #[arg(long)]
        yes: bool,
    },
}

pub(super) fn run(command: Admin) -> u8 {
    run_with(async {
        let store = match command.database.open().await {
            Ok((store, _)) => store,
            Err(error) => {
                say(&format!("error: {error}"));
                return FINDINGS;
            }
        };
        let code = match accounts(&store) {
            Ok(accounts) => act(&accounts, &store, command.act).await,
            Err(error) => {
                say(&format!("error: {error}"));
                FINDINGS
            }
        };
        store.close().await;
        code
    })
}

async fn act(accounts: &Accounts, store: &AnyStore, act: Act) -> u8 {
    let done = match act {
        Act::Create { username, email, password_file } => {
            let (password, made) = match password_file.as_deref().map(read_password) {
                None => (make_password(), true),
                Some(Ok(password)) => (password, false),
                Some(Err(error)) => {
                    say(&format!("error: the password cannot be read: {error}"));
                    return FINDINGS;
                }
            };
            let admin = NewAdmin { username, email, password: password.clone() };
            accounts.create_admin(BY, admin).await.map(|user| {
                say(&format!("{} may log in with the role `{ADMIN_ROLE}`", user.username));
                if made {
                    print(&format!("{password}\n"));
                }
            })
        }
        Act::Unlock { username, tenant } => accounts
            .unlock_name(BY, &tenant, &username)
            .await
            .map(|()| say(&format!("{username} may try again"))),
        Act::Role { username, role, tenant, config } => {
            let defined = match config.as_deref().map(roles) {
                None => None,
                Some(Ok(defined)) => Some(defined),
                Some(Err(code)) => return code,
            };
            match accounts.user_named(&tenant, &username).await {
                Ok(user) => accounts.set_role(BY, &user.id, &role, defined.as_deref()).await.map(|()| {
                    say(&format!("{} has the role `{role}` from its next login on", user.username));
                    if defined.is_none() && ![ADMIN_ROLE, DEFAULT_ROLE].contains(&&*role) {
                        say(&format!(
                            "warning: no manifest was asked whether it defines `{role}`; if none does, {} may do \
                             nothing that needs a permission. --config routes.yaml asks it",
                            user.username
                        ));
                    }
                }),
                Err(error) => Err(error),
            }
        }
        Act::Export { username, tenant } => match accounts.user_named(&tenant, &username).await {
            Ok(user) => match export(store, &user).await {
                Ok(written) => return written,
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        },
        Act::Delete { username, tenant, yes } => {
            if !yes && !std::io::stdin().is_terminal() {
                say(
                    "error: what is deleted does not come back, and there is no terminal to ask on: add --yes",
                );
                return USAGE;
            }
            match accounts.user_named(&tenant, &username).await {
                Ok(user) if yes || confirmed(&user) => accounts
                    .delete_user(BY, &user.id)
                    .await
                    .map(|()| say(&format!("{} is gone", user.username))),
                Ok(_) => {
                    say("nothing was deleted");
                    return FINDINGS;
                }
                Err(error) => Err(error),
            }
        }
    };
    match done {
        Ok(()) => OK,
        Err(error) => {
            say(&format!("error: {}", told(&error)));
            FINDINGS
        }
    }
}

/// The roles that a manifest defines. Only they matter here: what else is wrong with it is not this command's.
fn roles(config: &Path) -> Result<Vec<String>, u8> {
    let manifest = manifest::load(config, &|name| std::env::var(name).ok()).manifest;
    let defined: Vec<String> = manifest.roles.names().map(str::to_owned).collect();
    if defined.is_empty() {
        say(&format!(
            "error: {} defines no roles, or cannot be read: nothing was changed. `voicegate check --config {}` says \
             what is wrong with it; leave --config and VOICEGATE_CONFIG out to ask none",
            config.display(),
            config.display()
        ));
        return Err(FINDINGS);
    }
    Ok(defined)
}

/// Writes all that a user said and was told to stdout, page by page.
async fn export(store: &AnyStore, user: &User) -> Result<u8, GatewayError> {
    let mut export = Export::begin(store.clone(), user, SystemTime::now()).await?;
    while let Some(piece) = export.piece().await? {
        // Unlike talk, a document that is cut off is worth nothing.
        if let Err(error) = std::io::stdout().lock().write_all(&piece) {
            say(&format!("error: the export is not whole: {error}"));
            return Ok(FINDINGS);
        }
    }
    Ok(OK)
}

/// Asks on the terminal.
fn confirmed(user: &User) -> bool {
    say(&format!(
        "This deletes {} ({}) with all sessions and messages, for good. Type the name to go on:",
        user.username, user.id
    ));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).is_ok() && answer.trim() == user.username
}

/// An error as an operator reads it.
fn told(error: &GatewayError) -> String {
    if error.kind == Kind::NotFound {
        return "there is no such user; a user of another tenant needs --tenant".to_owned();
    }
    let mut text = error.kind.text(Lang::En).to_owned();
    for fault in &error.errors {
        text.push_str(&format!("\n  {} {}", fault.pointer.trim_start_matches('/'), fault.en));
    }
    text
}

fn read_password(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    match path.as_os_str() == "-" {
        true => std::io::stdin().lock().read_to_string(&mut text)?,
        false => std::fs::File::open(path)?.read_to_string(&mut text)?,
    };
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// A password with a letter of each case and a digit.
fn make_password() -> String {
    loop {
        let mut rng = rand::rng();
        let password: String =
            (0..PASSWORD_LENGTH).map(|_| char::from(rng.sample(rand::distr::Alphanumeric))).collect();
        let has = |class: fn(&char) -> bool| password.chars().any(|c| class(&c));
        if has(char::is_ascii_lowercase) && has(char::is_ascii_uppercase) && has(char::is_ascii_digit) {
            return password;
        }
    }
}

#[derive(Parser)]
struct Defaults {
    #[command(flatten)]
    accounts: AccountSettings,
}

/// Accounts over a database alone, by the seed's rules: mail and WeChat are not asked.
fn accounts(store: &AnyStore) -> Result<Accounts, SetupError> {
    let settings = Defaults::parse_from(["admin"]).accounts;
    let authority = Arc::new(Offline { store: store.clone() });
    Accounts::new(store.clone(), authority, &settings, Environment::Development, Arc::new(SystemTime::now))
}

/// Signs nothing: there are no keys here. Revokes in the database, which every gateway reads.
struct Offline {
    store: AnyStore,
}

#[async_trait::async_trait]
impl Authority for Offline {
    fn sign(
        &self,
        _user: &User,
        _login: &str,
        _channel: &str,
        _now: SystemTime,
    ) -> Result<String, GatewayError> {
        Err(Kind::Unavailable.into())
    }

    fn rules(&self) -> Rules {
        Rules::default()
    }

    fn identify(&self, _token: &str, _now: SystemTime) -> Option<Arc<Identity>> {
        None
    }

    async fn revoke_login(
        &self,
        _login: &str,
        _expires_at: Option<SystemTime>,
        _now: SystemTime,
    ) -> Stored<()> {
        Ok(())
    }

    async fn revoke_user(&self, user_id: &str, now: SystemTime) -> Stored<()> {
        // What the manifest says of lifetimes is not known here: longer than any is safe, and costs one row.
        let ends = now + Duration::from_secs(400 * 24 * 3600);
        self.store.revoke(&format!("user:{user_id}"), now, ends).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::testing::House;

    #[test]
    fn made_passwords_keep_the_rules_and_differ() {
        let (one, other) = (make_password(), make_password());
        assert_eq!(one.len(), PASSWORD_LENGTH);
        assert_ne!(one, other);
    }

    #[tokio::test]
    async fn an_administrator_is_made_and_faults_are_named() {
        let house = House::with(&[]);
        let create = |username: &str| Act::Create {
            username: username.to_owned(),
            email: "root@example.com".to_owned(),
            password_file: None,
        };
        let store: AnyStore = house.store.clone();
        assert_eq!(act(&house.accounts, &store, create("root")).await, OK);
        assert_eq!(act(&house.accounts, &store, create("root")).await, FINDINGS, "it is there already");
        let user = house.accounts.user_named("", "ROOT").await.unwrap();
        assert_eq!(user.role, ADMIN_ROLE);
        let role = |role: &str| Act::Role {
            username: "root".into(),
            role: role.into(),
            tenant: String::new(),
            config: None,
        };
        assert_eq!(act(&house.accounts, &store, role("user")).await, OK);
        assert_eq!(house.accounts.user_named("", "root").await.unwrap().role, "user");
        let nobody =
            Act::Role { username: "nobody".into(), role: "user".into(), tenant: String::new(), config: None };
        assert_eq!(act(&house.accounts, &store, nobody).await, FINDINGS);
        let error = house
            .accounts
            .create_admin(BY, NewAdmin { username: "x".into(), email: "x".into(), password: "x".into() });
        let text = told(&error.await.err().unwrap());
        assert!(text.contains("\n  username must have 3 to 50"), "{text}");
    }
}

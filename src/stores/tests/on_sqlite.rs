//! What only a file can promise.

use super::*;
use std::process::{Command, Stdio};
use std::time::Instant;

#[tokio::test]
async fn a_file_is_made_for_its_owner_only_and_keeps_what_it_was_given() {
    let bed = Bed::sqlite_file().await;
    let user = bed.user("a").await;
    let file = bed.url.strip_prefix("sqlite://").unwrap();
    use std::os::unix::fs::PermissionsExt;
    for name in [file.to_owned(), format!("{file}-wal")] {
        assert_eq!(std::fs::metadata(&name).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
    }
    bed.store.close().await;
    let again = bed.another().await.unwrap();
    assert_eq!(again.migrate().await.unwrap(), 0);
    assert_eq!(again.user(&user.id).await.unwrap(), user);
}

#[tokio::test]
async fn a_file_that_cannot_be_opened_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("nowhere/test.db");
    let text = folder.path().join("text.db");
    std::fs::write(&text, "This is no database, although it is long enough to be taken for one.".repeat(20))
        .unwrap();
    for file in [missing, text, folder.path().to_owned()] {
        let Err(error) = open(&format!("sqlite://{}", file.display()), &limits()).await else {
            panic!("{} was opened", file.display())
        };
        assert!(error.to_string().contains(&file.display().to_string()), "{error}");
    }
}

#[tokio::test]
async fn the_writer_waits_for_another_process_and_then_gives_up() {
    let bed = Bed::sqlite_file().await;
    let user = bed.user("a").await;
    let short = StoreLimits { statement_timeout: Duration::from_millis(300), ..limits() };
    let store = open(&bed.url, &short).await.unwrap();
    let mut other = SqliteConnection::connect(&bed.url).await.unwrap();
    let held = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let start = Instant::now();
    let refused = store.set_role(&user.id, "admin", at(1)).await;
    assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    assert!(
        start.elapsed() >= Duration::from_millis(250) && start.elapsed() < secs(3),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(store.user(&user.id).await.unwrap().role, "user", "readers do not wait for writers");
    held.rollback().await.unwrap();
    store.set_role(&user.id, "admin", at(1)).await.unwrap();
}

/// Before there were pieces, what was said so far stood in the turn's row.
#[tokio::test]
async fn what_a_replica_of_before_saved_is_not_lost() {
    let bed = Bed::sqlite_file().await;
    let ada = conversations::owner(&bed.user("ada").await);
    conversations::session(&bed, &ada, "s1", 1).await;
    turns::begin(&bed, &ada, &turns::turn("s1", "t1"), 1).await;
    let mut before = SqliteConnection::connect(&bed.url).await.unwrap();
    sqlx::query("UPDATE turns SET said = 'so far'").execute(&mut before).await.unwrap();
    assert_eq!(bed.store.recover_turns("r2", at(99)).await.unwrap(), 1);
    assert_eq!(bed.store.message(&ada, "s1", "t1").await.unwrap().content, "so far");
}

/// Names the file to [`writes_until_it_is_killed`].
const VICTIM: &str = "VOICEGATE_TEST_VICTIM";

/// Not a test of its own: the process that the next test kills.
#[tokio::test]
async fn writes_until_it_is_killed() {
    let Ok(url) = std::env::var(VICTIM) else { return };
    let store = open(&url, &limits()).await.unwrap();
    let user = store.create_user(someone("victim"), at(0)).await.unwrap();
    for number in 0.. {
        store.begin_family(&user.id, &format!("f{number}"), &hash(number), at(100), at(0)).await.unwrap();
    }
}

/// SECURITY rule 21. A family is two rows, written in one transaction.
#[tokio::test]
async fn a_killed_process_leaves_a_database_without_halves() {
    let bed = Bed::sqlite_file().await;
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "stores::tests::on_sqlite::writes_until_it_is_killed"])
        .env(VICTIM, &bed.url)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while bed.count("refresh_families").await.unwrap() < 20 {
        assert!(start.elapsed() < secs(30), "the victim writes nothing");
    }
    victim.kill().unwrap();
    victim.wait().unwrap();

    let again = bed.another().await.unwrap();
    assert_eq!(again.migrate().await.unwrap(), 0);
    let (families, tokens) = (bed.count("refresh_families").await, bed.count("refresh_tokens").await);
    assert!(families >= Some(20));
    assert_eq!(families, tokens, "no half family");
    let mut connection = SqliteConnection::connect(&bed.url).await.unwrap();
    let verdict: String =
        sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut connection).await.unwrap();
    assert_eq!(verdict, "ok");
    again.create_user(someone("after"), at(1)).await.unwrap();
}

//! Tokens that count and tokens that do not (SECURITY rule 6, RFC 8725).

use super::testing::{SECRET, backends, tokens, user};
use super::*;
use crate::diag::{Diagnostics, SourceFile, Sources};
use crate::manifest::decode::decode;
use crate::manifest::node;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use std::time::UNIX_EPOCH;

const NOW: u64 = 1_800_000_000;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

/// What a token of ours says, changed by `change`: `null` takes a claim away.
fn ours(change: &Value) -> Value {
    changed(
        json!({
            "iss": "voicehelper-api", "exp": NOW + 3600, "iat": NOW, "nbf": NOW, "sub": "u-1", "jti": "j-1",
            "token_use": "access", "user_id": "u-1", "tenant_id": "acme", "role": "user", "scopes": []
        }),
        change,
    )
}

/// What the original's says (its Go structure, `scopes` unset).
fn original(change: &Value) -> Value {
    changed(
        json!({
            "user_id": "u-1", "tenant_id": "acme", "openid": "", "channel": "wechat", "role": "user", "scopes": null,
            "iss": "voicehelper-api", "exp": NOW + 3600, "iat": NOW
        }),
        change,
    )
}

fn changed(mut claims: Value, change: &Value) -> Value {
    for (name, value) in change.as_object().unwrap() {
        match value {
            Value::Null => drop(claims.as_object_mut().unwrap().shift_remove(name)),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

fn signed(claims: &Value, secret: &str) -> String {
    with_header(&Header::new(Algorithm::HS256), claims, secret)
}

fn with_header(header: &Header, claims: &Value, secret: &str) -> String {
    encode(header, claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let number = chunk.iter().fold(0u32, |n, b| n << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for place in 0..=chunk.len() {
            text.push(char::from(LETTERS[(number >> (18 - 6 * place) & 63) as usize]));
        }
    }
    text
}

fn verdict(token: &str) -> Result<Arc<Identity>, TokenError> {
    tokens().verify(token, at(NOW))
}

#[test]
fn what_was_issued_verifies_and_tells_who() {
    let tokens = tokens();
    let who = User { openid: Some("wx".into()), ..user("u-1", "acme", "user") };
    let issued = tokens.issue_within(&who, "login", Some("web"), at(NOW));
    assert_eq!(issued.expires_at, at(NOW + 24 * 3600));
    for _ in 0..2 {
        let identity = tokens.verify(&issued.token, at(NOW)).unwrap();
        assert_eq!((&*identity.user_id, &*identity.tenant_id, &*identity.role), ("u-1", "acme", "user"));
        assert_eq!((identity.channel.as_deref(), identity.openid.as_deref()), (Some("web"), Some("wx")));
        assert_eq!(identity.token_id.as_deref(), Some("login"));
        assert_eq!((identity.issued_at, identity.expires_at), (Some(at(NOW)), Some(issued.expires_at)));
        assert_eq!(identity.proof, Proof::Token);
    }
    let late = at(NOW + 24 * 3600 + 5);
    assert_eq!(tokens.verify(&issued.token, late).unwrap_err(), TokenError::Expired, "remembered no longer");
}

#[test]
fn claims_are_required_and_well_typed() {
    assert!(verdict(&signed(&ours(&json!({})), SECRET)).is_ok());
    assert!(verdict(&signed(&ours(&json!({ "nbf": null, "user_id": null })), SECRET)).is_ok());
    for change in [
        json!({ "exp": null }),
        json!({ "exp": "1900000000" }),
        json!({ "exp": -1 }),
        json!({ "exp": 1.5e300 }),
        json!({ "iss": null }),
        json!({ "iss": "somebody" }),
        json!({ "iss": ["voicehelper-api"] }),
        json!({ "sub": null }),
        json!({ "sub": "" }),
        json!({ "sub": 7 }),
        json!({ "sub": "u-2" }),
        json!({ "jti": null }),
        json!({ "iat": null }),
        json!({ "nbf": "soon" }),
        json!({ "nbf": NOW + 60 }),
        json!({ "scopes": "all" }),
        json!({ "role": 1 }),
        json!({ "role": "user\r\nx-user-role: admin" }),
        json!({ "tenant_id": "acme " }),
        json!({ "token_use": "refresh" }),
        json!({ "token_use": "" }),
        json!({ "token_use": 1 }),
    ] {
        assert_eq!(verdict(&signed(&ours(&change), SECRET)).unwrap_err(), TokenError::Invalid, "{change}");
    }
    for (exp, wanted) in
        [(NOW - 4, None), (NOW - 5, Some(TokenError::Expired)), (0, Some(TokenError::Expired))]
    {
        assert_eq!(verdict(&signed(&ours(&json!({ "exp": exp })), SECRET)).err(), wanted, "{exp}");
    }
    assert!(verdict(&signed(&ours(&json!({ "nbf": NOW + 5 })), SECRET)).is_ok(), "clocks differ a little");
}

#[test]
fn tokens_of_the_original_count() {
    let identity = verdict(&signed(&original(&json!({})), SECRET)).unwrap();
    assert_eq!((&*identity.user_id, &*identity.role), ("u-1", "user"));
    assert_eq!((identity.channel.as_deref(), identity.openid.as_deref()), (Some("wechat"), None));
    assert!(identity.token_id.as_ref().unwrap().starts_with("hash:"), "it can be revoked all the same");
    for change in [
        json!({ "user_id": null }),
        json!({ "user_id": "" }),
        json!({ "user_id": null, "sub": "u-1" }),
        json!({ "sub": "u-2" }),
        json!({ "token_use": "refresh" }),
        json!({ "iss": "somebody" }),
    ] {
        assert_eq!(
            verdict(&signed(&original(&change), SECRET)).unwrap_err(),
            TokenError::Invalid,
            "{change}"
        );
    }
}

#[test]
fn only_our_algorithm_and_our_secrets_count() {
    let claims = ours(&json!({}));
    let good = signed(&claims, SECRET);
    let (message, signature) = good.rsplit_once('.').unwrap();
    let payload = base64(claims.to_string().as_bytes());
    let headed = |header: &str| format!("{}.{payload}.{signature}", base64(header.as_bytes()));
    let hs512 = with_header(&Header::new(Algorithm::HS512), &claims, SECRET);
    let tampered = base64(ours(&json!({ "role": "admin" })).to_string().as_bytes());
    let head = message.split('.').next().unwrap();
    for bad in [
        String::new(),
        "a.b.c".to_owned(),
        "..".to_owned(),
        message.to_owned(),
        format!("{message}."),
        format!("{good}x"),
        format!("{good}.x"),
        format!("{head}.{tampered}.{signature}"),
        headed(r#"{"alg":"none"}"#),
        format!("{}.{payload}.", base64(br#"{"alg":"none","typ":"JWT"}"#)),
        format!("{}.{payload}.", base64(br#"{"alg":"None"}"#)),
        headed(r#"{"alg":"RS256"}"#),
        headed(r#"{"alg":"ES256","kid":"1"}"#),
        headed(r#"{"alg":["HS256"]}"#),
        headed("{}"),
        hs512,
        signed(&claims, "another secret of more than thirty-two bytes"),
        signed(&claims, ""),
        format!("{good}{}", "=".repeat(9000)),
    ] {
        assert_eq!(verdict(&bad).unwrap_err(), TokenError::Invalid, "{bad:.80}");
    }
    let plain = || Header::new(Algorithm::HS256);
    for header in [
        Header { jku: Some("https://evil.example/jwks".into()), ..plain() },
        Header { x5u: Some("https://evil.example/x5u".into()), ..plain() },
        Header { x5c: Some(vec!["AAAA".into()]), ..plain() },
        Header { crit: Some(vec!["exp".into()]), ..plain() },
        Header { typ: Some("refresh+jwt".into()), ..plain() },
    ] {
        let token = with_header(&header, &claims, SECRET);
        assert_eq!(verdict(&token).unwrap_err(), TokenError::Invalid, "{header:?}");
    }
}

#[test]
fn earlier_secrets_count_and_sign_nothing() {
    let (store, shared) = backends();
    let rotated = Tokens::new(Keys::new(b"the new secret", &["older", SECRET]), store, shared, 8);
    assert!(rotated.verify(&signed(&ours(&json!({})), SECRET), at(NOW)).is_ok());
    let issued = rotated.issue(&user("u", "", "user"), None, at(NOW));
    assert!(rotated.verify(&issued.token, at(NOW)).is_ok());
    assert_eq!(verdict(&issued.token).unwrap_err(), TokenError::Invalid, "the old one verifies it no more");
}

#[test]
fn renewal_keeps_the_login_and_is_bounded() {
    let tokens = tokens();
    let policy = tokens.policy();
    let issued = tokens.issue(&user("u", "t", "user"), None, at(NOW));
    let identity = tokens.verify(&issued.token, at(NOW)).unwrap();
    assert_eq!(tokens.renew(&identity, &policy, at(NOW + 23 * 3600)), None, "an hour is left");
    let later = at(NOW + 23 * 3600 + 1);
    let renewed = tokens.renew(&identity, &policy, later).unwrap();
    assert_ne!(renewed.jti, issued.jti);
    let second = tokens.verify(&renewed.token, later).unwrap();
    assert_eq!((&second.token_id, second.issued_at), (&identity.token_id, identity.issued_at));
    assert_eq!(second.expires_at, Some(renewed.expires_at));
    let week = at(NOW + 7 * 24 * 3600);
    let oldest = Identity { expires_at: Some(week), ..(*second).clone() };
    assert_eq!(tokens.renew(&oldest, &policy, week), None, "a login does not live for ever");
    let key = Identity { proof: Proof::Provider, ..(*identity).clone() };
    assert_eq!(tokens.renew(&key, &policy, later), None, "others renew their own");
    let original = tokens.verify(&signed(&original(&json!({ "exp": NOW + 60 })), SECRET), at(NOW)).unwrap();
    let renewed = tokens.renew(&original, &policy, at(NOW)).unwrap();
    let ours = tokens.verify(&renewed.token, at(NOW)).unwrap();
    assert_eq!(ours.token_id, original.token_id, "revoking the original's ends ours");
}

#[tokio::test]
async fn revoking_ends_a_login_or_all_of_them() {
    let tokens = tokens();
    let who = user("u", "t", "user");
    let (one, other) = (tokens.issue(&who, None, at(NOW)), tokens.issue(&who, None, at(NOW)));
    let identity = tokens.verify(&one.token, at(NOW)).unwrap();
    tokens.revoke_login(&identity, at(NOW)).await.unwrap();
    assert_eq!(tokens.verify(&one.token, at(NOW)).unwrap_err(), TokenError::Revoked);
    assert_eq!(tokens.still_good(&identity, at(NOW)), Err(TokenError::Revoked));
    let identity = tokens.verify(&other.token, at(NOW)).unwrap();
    assert_eq!(tokens.still_good(&identity, at(NOW)), Ok(()));
    assert_eq!(tokens.still_good(&identity, other.expires_at), Err(TokenError::Expired));
    tokens.revoke_user("u", at(NOW) + Duration::from_millis(500)).await.unwrap();
    assert_eq!(tokens.verify(&other.token, at(NOW)).unwrap_err(), TokenError::Revoked);
    let next = tokens.issue(&who, None, at(NOW) + Duration::from_millis(501));
    assert!(tokens.verify(&next.token, at(NOW)).is_ok(), "logged in again within the same second");
    // All that stems from one login, also what is signed after its end, as by a refresh that was under way.
    let issued = |now| tokens.issue_within(&who, "login", None, at(now));
    let first = issued(NOW + 1);
    tokens.end_login("login", None, at(NOW + 2)).await.unwrap();
    for token in [&first, &issued(NOW + 3)] {
        assert_eq!(tokens.verify(&token.token, at(NOW + 3)).unwrap_err(), TokenError::Revoked);
    }
}

#[tokio::test]
async fn another_replica_hears_of_it_by_word_and_by_the_store() {
    let (store, shared) = backends();
    let (_, deaf) = backends();
    let keys = || Keys::new(SECRET.as_bytes(), &[]);
    let now = SystemTime::now();
    let here = Tokens::new(keys(), store.clone(), shared.clone(), 8);
    // One hears what is told but reads another store, the other reads the store and hears nothing.
    let hears = Tokens::new(keys(), backends().0, shared, 8);
    let reads = Tokens::new(keys(), store.clone(), deaf.clone(), 8);
    let followers = [tokio::spawn(hears.follow()), tokio::spawn(reads.follow())];
    tokio::task::yield_now().await;
    let issued = here.issue(&user("u", "t", "user"), None, now);
    let identity = here.verify(&issued.token, now).unwrap();
    here.revoke_login(&identity, now).await.unwrap();
    let begun = std::time::Instant::now();
    while hears.verify(&issued.token, now).is_ok() || reads.verify(&issued.token, now).is_ok() {
        assert!(begun.elapsed() < Duration::from_secs(3), "a second, and some for a slow machine");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    followers.into_iter().for_each(|follower| follower.abort());
    let late = Tokens::new(keys(), store, deaf, 8);
    late.load_revocations(now).await.unwrap();
    assert_eq!(late.verify(&issued.token, now).unwrap_err(), TokenError::Revoked, "one that starts later");
}

#[test]
fn what_one_policy_lets_pass_another_may_not() {
    let tokens = tokens();
    let issued = tokens.issue(&user("u", "t", "user"), None, at(NOW));
    assert!(tokens.verify(&issued.token, at(NOW)).is_ok());
    let other = policy("issuer: other");
    assert_eq!(tokens.verify_under(&other, &issued.token, at(NOW)).unwrap_err(), TokenError::Invalid);
    tokens.adopt(other);
    assert_eq!(tokens.verify(&issued.token, at(NOW)).unwrap_err(), TokenError::Invalid);
}

fn policy(text: &str) -> Arc<AuthPolicy> {
    let mut out = Diagnostics::new();
    let mut sources = Sources::default();
    let file = sources.add(SourceFile::new("a", text));
    let tree = node::parse(file, sources.get(file).unwrap(), &mut out).unwrap();
    let auth = decode(&tree, &mut out).unwrap();
    let policy = AuthPolicy::check(Some(&auth), &mut out);
    assert!(out.is_empty(), "{:?}", out.iter().map(|fault| &fault.message).collect::<Vec<_>>());
    Arc::new(policy)
}

mod providers {
    //! Another issuer, whose key set a small server gives out.

    use super::*;
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PublicKeyData};
    use std::sync::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A key of theirs: its JWK, and what signs.
    struct Pair {
        jwk: Value,
        header: Header,
        key: EncodingKey,
    }

    fn elliptic(kid: &str) -> Pair {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let point = pair.der_bytes();
        let jwk = json!({ "kty": "EC", "crv": "P-256", "kid": kid, "use": "sig", "alg": "ES256",
                          "x": base64(&point[1..33]), "y": base64(&point[33..65]) });
        let header = Header { kid: Some(kid.into()), ..Header::new(Algorithm::ES256) };
        Pair { jwk, header, key: EncodingKey::from_ec_der(&pair.serialize_der()) }
    }

    fn edwards(kid: &str) -> Pair {
        let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let jwk = json!({ "kty": "OKP", "crv": "Ed25519", "kid": kid, "x": base64(pair.der_bytes()) });
        let header = Header { kid: Some(kid.into()), ..Header::new(Algorithm::EdDSA) };
        Pair { jwk, header, key: EncodingKey::from_ed_der(&pair.serialize_der()) }
    }

    impl Pair {
        fn sign(&self, change: &Value) -> String {
            let claims = json!({ "iss": "sso", "sub": "s-1", "aud": "voicehelper", "exp": NOW + 600, "iat": NOW,
                                 "realm_access": { "roles": ["user"] }, "org": "acme", "scope": "a:b c:d" });
            encode(&self.header, &changed(claims, change), &self.key).unwrap()
        }
    }

    /// Gives out what is in it, and counts how often.
    async fn key_server(keys: Vec<Value>) -> (String, Arc<Mutex<(Vec<Value>, usize)>>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks.json", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new((keys, 0)));
        let shown = state.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let body = {
                    let mut state = shown.lock().unwrap();
                    state.1 += 1;
                    json!({ "keys": state.0 }).to_string()
                };
                let mut head = [0; 2048];
                let _ = stream.read(&mut head).await;
                let answer = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (url, state)
    }

    fn of(url: &str) -> Arc<AuthPolicy> {
        policy(&format!(
            "providers: [{{ issuer: sso, jwks: '{url}', audience: voicehelper, \
             claims: {{ role: '$.realm_access.roles[0]', tenant_id: '$.org', scopes: '$.scope' }} }}]"
        ))
    }

    #[tokio::test]
    async fn their_tokens_count_by_their_keys() {
        let (ec, ed, strange) = (elliptic("1"), edwards("2"), elliptic("1"));
        let secret = json!({ "kty": "oct", "kid": "3", "k": base64(b"published"), "alg": "HS256" });
        let odd = json!({ "kty": "new", "kid": "4" });
        let (url, _) = key_server(vec![odd, secret, ec.jwk.clone(), ed.jwk.clone()]).await;
        let (tokens, policy) = (tokens(), of(&url));
        tokens.adopt(policy.clone());
        let asked = async |token: String| tokens.verify_patiently(&policy, &token, at(NOW)).await;
        for pair in [&ec, &ed] {
            let identity = asked(pair.sign(&json!({}))).await.unwrap();
            assert_eq!((&*identity.user_id, &*identity.tenant_id, &*identity.role), ("s-1", "acme", "user"));
            assert_eq!(
                (identity.scopes.as_slice(), identity.proof),
                (&["a:b".into(), "c:d".into()][..], Proof::Provider)
            );
        }
        assert_eq!(&*asked(ec.sign(&json!({ "realm_access": null }))).await.unwrap().role, "guest");
        for change in [
            json!({ "aud": "somebody" }),
            json!({ "aud": null }),
            json!({ "aud": ["a", 1] }),
            json!({ "sub": null }),
            json!({ "exp": null }),
            json!({ "exp": "x" }),
            json!({ "iss": "voicehelper-api" }),
            json!({ "iss": "nobody" }),
            json!({ "nbf": NOW + 100 }),
            json!({ "token_use": "id" }),
            json!({ "typ": "Refresh" }),
            json!({ "sub": "a\nb" }),
        ] {
            assert_eq!(asked(ec.sign(&change)).await.unwrap_err(), TokenError::Invalid, "{change}");
        }
        assert_eq!(asked(ec.sign(&json!({ "exp": NOW - 5 }))).await.unwrap_err(), TokenError::Expired);
        assert_eq!(asked(strange.sign(&json!({}))).await.unwrap_err(), TokenError::Invalid, "another key");
        let swapped = Pair { header: Header { kid: Some("2".into()), ..ec.header.clone() }, ..ec };
        assert_eq!(asked(swapped.sign(&json!({}))).await.unwrap_err(), TokenError::Invalid, "another's name");
        // The published key as a secret: the oldest trick.
        for secret in ["published", swapped.jwk["x"].as_str().unwrap()] {
            let claims = json!({ "iss": "sso", "sub": "s", "aud": "voicehelper", "exp": NOW + 9, "token_use": "access" });
            let header = Header { kid: Some("3".into()), ..Header::new(Algorithm::HS256) };
            assert_eq!(asked(with_header(&header, &claims, secret)).await.unwrap_err(), TokenError::Invalid);
        }
    }

    #[tokio::test]
    async fn strange_names_bring_one_fetch_and_not_many() {
        let (known, strange) = (elliptic("1"), elliptic("9"));
        let (url, state) = key_server(vec![known.jwk.clone()]).await;
        let (tokens, policy) = (tokens(), of(&url));
        tokens.adopt(policy.clone());
        assert!(tokens.verify_patiently(&policy, &known.sign(&json!({})), at(NOW)).await.is_ok());
        state.lock().unwrap().0.push(strange.jwk.clone());
        for _ in 0..50 {
            let token = strange.sign(&json!({}));
            assert!(tokens.verify_patiently(&policy, &token, at(NOW)).await.is_err(), "fetched a moment ago");
        }
        assert_eq!(state.lock().unwrap().1, 1);
        // The same set under a revision that says other things is not fetched again.
        tokens.adopt(policy.clone());
        assert!(tokens.verify_under(&policy, &known.sign(&json!({ "jti": "2" })), at(NOW)).is_ok());
        assert_eq!(state.lock().unwrap().1, 1);
    }

    #[tokio::test]
    async fn a_dead_address_refuses_theirs_and_leaves_ours() {
        let policy = of("http://127.0.0.1:1/jwks.json");
        let tokens = tokens();
        tokens.adopt(policy.clone());
        let theirs = elliptic("1").sign(&json!({}));
        let refused = tokens.verify_patiently(&policy, &theirs, at(NOW)).await;
        assert_eq!(refused.unwrap_err(), TokenError::Invalid);
        let ours = tokens.issue(&user("u", "t", "user"), None, at(NOW));
        assert!(tokens.verify_patiently(&policy, &ours.token, at(NOW)).await.is_ok());
    }
}

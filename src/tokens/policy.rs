//! What a manifest's `auth:` section decides: issuer, lifetimes, where tokens may stand, lockout, passwords, and whose
//! tokens count beside ours.
//!
//! Compiled with the revision: a request goes by the policy of the table it runs on; handlers read the live one
//! ([`Tokens::policy`](super::Tokens::policy)).

use super::path::ClaimPath;
use crate::diag::{Code, Diagnostic, Diagnostics, did_you_mean};
use crate::manifest::Spanned;
use crate::manifest::model::{Auth, CharacterClass, Provider, TokenSource};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;
use url::{Host, Url};

/// A sound `auth:` section; [`Default`] is what counts where there is none.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AuthPolicy {
    /// `iss` of our tokens.
    pub issuer: String,
    /// Lifetime of an access token.
    pub access_ttl: Duration,
    /// Lifetime of a refresh token; also how long a login can be kept alive by renewals.
    pub refresh_ttl: Duration,
    /// How long a used refresh token is taken again.
    pub refresh_grace: Duration,
    /// Tokens with less left are renewed.
    pub renew_within: Duration,
    /// How long a ticket can be used.
    pub ticket_ttl: Duration,
    /// Where a token may stand, first choice first.
    pub token_from: Vec<TokenSource>,
    /// When an account is locked.
    pub lockout: LockoutPolicy,
    /// What a password must have.
    pub password: PasswordPolicy,
    /// Whose tokens count beside ours.
    pub providers: Vec<ProviderPolicy>,
    /// Hash of everything above.
    fingerprint: u64,
}

/// When an account is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LockoutPolicy {
    /// Failures that lock.
    pub failures: u32,
    /// They count this long.
    pub window: Duration,
    /// The lock lasts this long.
    pub lock_for: Duration,
}

/// What a password must have.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PasswordPolicy {
    /// bcrypt's cost.
    pub bcrypt_cost: u32,
    /// Characters at least.
    pub min_length: u32,
    /// Classes of characters it needs.
    pub require: Vec<CharacterClass>,
}

/// Another issuer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ProviderPolicy {
    /// Its `iss`.
    pub issuer: String,
    /// Address of its key set.
    pub jwks: String,
    /// `aud` its tokens must carry.
    pub audience: Option<String>,
    /// Where its tokens say what ours say; `user_id` is `sub` and `role` is `guest` where this does not tell.
    pub claims: Vec<(Claim, ClaimPath)>,
}

/// What a provider's token can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Claim {
    /// `user_id`.
    User,
    /// `tenant_id`.
    Tenant,
    /// `role`.
    Role,
    /// `scopes`: a list, or words in one string (RFC 8693, section 4.2).
    Scopes,
    /// `channel`.
    Channel,
    /// `openid`.
    Openid,
}

const CLAIMS: &[(&str, Claim)] = &[
    ("user_id", Claim::User),
    ("tenant_id", Claim::Tenant),
    ("role", Claim::Role),
    ("scopes", Claim::Scopes),
    ("channel", Claim::Channel),
    ("openid", Claim::Openid),
];

const HOUR: Duration = Duration::from_secs(3600);
const QUARTER: Duration = Duration::from_secs(900);
/// A ticket that is good for longer is worth a warning.
const LONG_TICKET: Duration = Duration::from_secs(60);
/// Longer ones would be tokens in URLs.
const LONGEST_TICKET: Duration = HOUR;
/// bcrypt looks at no more bytes (SECURITY rule 8).
const LONGEST_PASSWORD: u32 = 72;

impl Default for AuthPolicy {
    fn default() -> Self {
        use {CharacterClass as Class, TokenSource as From};
        AuthPolicy {
            issuer: "voicehelper-api".to_owned(),
            access_ttl: 24 * HOUR,
            refresh_ttl: 7 * 24 * HOUR,
            refresh_grace: Duration::ZERO,
            renew_within: HOUR,
            ticket_ttl: Duration::from_secs(30),
            token_from: vec![From::Header, From::Query, From::Cookie],
            lockout: LockoutPolicy { failures: 5, window: QUARTER, lock_for: QUARTER },
            password: PasswordPolicy {
                bcrypt_cost: 10,
                min_length: 8,
                require: vec![Class::Lower, Class::Upper, Class::Digit],
            },
            providers: Vec::new(),
            fingerprint: 0,
        }
        .sealed()
    }
}

impl AuthPolicy {
    /// Reads a section; contradictions are faults, and what is faulty keeps its default.
    pub fn check(declared: Option<&Spanned<Auth>>, out: &mut Diagnostics) -> Self {
        let mut policy = AuthPolicy::default();
        let Some(auth) = declared else { return policy };
        if let Some(issuer) = &auth.issuer {
            match issuer.trim() {
                "" => bad(issuer.span, "the issuer is empty", "leave it out, or name this installation", out),
                issuer => policy.issuer = issuer.to_owned(),
            }
        }
        policy.lifetimes(auth, out);
        policy.tickets(auth, out);
        if !auth.token_from.0.is_empty() {
            policy.token_from.clear();
            for source in &auth.token_from.0 {
                match policy.token_from.contains(&source.value) {
                    true => bad(source.span, "this place stands twice", "name each place once", out),
                    false => policy.token_from.push(source.value),
                }
            }
        }
        if let Some(lockout) = &auth.lockout {
            if *lockout.failures == 0 {
                let help = "write at least 1; five is usual";
                bad(lockout.failures.span, "0 failures would lock everybody out", help, out);
            }
            policy.lockout = LockoutPolicy {
                failures: (*lockout.failures).max(1),
                window: lockout.window.0,
                lock_for: lockout.lock_for.0,
            };
        }
        policy.passwords(auth, out);
        for provider in &auth.providers.0 {
            policy.provider(provider, out);
        }
        policy.sealed()
    }

    /// Equal for equal policies.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    fn sealed(mut self) -> Self {
        self.fingerprint = 0;
        let mut state = DefaultHasher::new();
        self.hash(&mut state);
        self.fingerprint = state.finish();
        self
    }

    fn lifetimes(&mut self, auth: &Auth, out: &mut Diagnostics) {
        let set = |declared: &Option<Spanned<crate::units::Dur>>, place: &mut Duration| {
            declared.iter().for_each(|ttl| *place = ttl.value.0);
        };
        set(&auth.access_ttl, &mut self.access_ttl);
        set(&auth.refresh_ttl, &mut self.refresh_ttl);
        self.refresh_grace = auth.refresh_grace.as_ref().map_or(self.refresh_grace, |grace| grace.value.0);
        // The default does not contradict a short lifetime that was asked for.
        self.renew_within = self.renew_within.min(self.access_ttl / 2);
        set(&auth.renew_within, &mut self.renew_within);
        let span = |own: &Option<Spanned<crate::units::Dur>>, other: &Option<Spanned<crate::units::Dur>>| {
            own.as_ref().or(other.as_ref()).map(|ttl| ttl.span)
        };
        if self.renew_within >= self.access_ttl
            && let Some(span) = span(&auth.renew_within, &auth.access_ttl)
        {
            out.push(
                Diagnostic::error(Code::DEADLINES, span, "every token would be renewed by every request")
                    .help("`renew_within` is shorter than `access_ttl`; an hour of a day is usual"),
            );
        }
        if self.access_ttl >= self.refresh_ttl
            && let Some(span) = span(&auth.access_ttl, &auth.refresh_ttl)
        {
            let message = "an access token would outlive the refresh token that comes with it";
            out.push(
                Diagnostic::error(Code::DEADLINES, span, message)
                    .help("`access_ttl` is shorter than `refresh_ttl`; 24h and 7d are usual"),
            );
        }
        if let Some(grace) = &auth.refresh_grace {
            if self.refresh_grace >= self.refresh_ttl {
                out.push(
                    Diagnostic::error(Code::DEADLINES, grace.span, "a refresh token would never be used up")
                        .help("`refresh_grace` is much shorter than `refresh_ttl`; 10s and 7d are usual"),
                );
            } else if !self.refresh_grace.is_zero() {
                let message =
                    "for so long after its use a stolen refresh token works beside its owner's, unnoticed";
                out.push(Diagnostic::warning(Code::LOOSENED, grace.span, message).help(
                    "`0s` ends the login at every reuse; 10s is enough for tabs that refresh together and for an \
                     answer that got lost",
                ));
            }
        }
    }

    fn tickets(&mut self, auth: &Auth, out: &mut Diagnostics) {
        let Some(ttl) = &auth.ticket_ttl else { return };
        self.ticket_ttl = ttl.value.0.min(LONGEST_TICKET);
        if ttl.value.0 > LONGEST_TICKET {
            bad(ttl.span, "a ticket is good for an hour at most", "30s is enough to connect", out);
        } else if ttl.value.0 > LONG_TICKET {
            let message =
                "for so long whoever finds a ticket in a log or a history can use it, if its owner did not";
            out.push(
                Diagnostic::warning(Code::LOOSENED, ttl.span, message)
                    .help("a caller asks for a ticket right before it connects: 30s is enough"),
            );
        }
    }

    fn passwords(&mut self, auth: &Auth, out: &mut Diagnostics) {
        let Some(rules) = &auth.password else { return };
        if let Some(cost) = &rules.bcrypt_cost {
            match **cost {
                4..=9 => out.push(
                    Diagnostic::warning(Code::LOOSENED, cost.span, "passwords are hashed cheaply")
                        .help("10 is the least for real callers"),
                ),
                10..=16 => {}
                _ => bad(cost.span, "bcrypt's cost is from 4 to 16 here", "each step doubles the time", out),
            }
            self.password.bcrypt_cost = (**cost).clamp(4, 16);
        }
        if let Some(length) = &rules.min_length {
            match **length {
                0 => bad(length.span, "a password has at least one character", "eight is usual", out),
                1..8 => out.push(
                    Diagnostic::warning(Code::LOOSENED, length.span, "passwords may be very short")
                        .help("8 is the least that is advised (NIST SP 800-63B)"),
                ),
                8..=LONGEST_PASSWORD => {}
                _ => bad(length.span, "bcrypt takes 72 bytes at most", "ask for fewer characters", out),
            }
            self.password.min_length = (**length).clamp(1, LONGEST_PASSWORD);
        }
        if !rules.require.0.is_empty() {
            self.password.require = rules.require.0.iter().map(|class| class.value).collect();
        }
    }

    fn provider(&mut self, declared: &Spanned<Provider>, out: &mut Diagnostics) {
        let issuer = &declared.issuer;
        if **issuer == self.issuer || self.providers.iter().any(|known| known.issuer == **issuer) {
            let message = "two issuers have one name: their tokens could not be told apart";
            bad(issuer.span, message, "each `iss` stands for one set of keys", out);
        }
        check_url(&declared.jwks, out);
        let mut claims = Vec::new();
        for (name, path) in &declared.claims.0 {
            let known = CLAIMS.iter().find(|(known, _)| *known == name.text);
            if known.is_none() {
                let message = "this is not something that tokens tell";
                out.push(
                    Diagnostic::error(Code::UNKNOWN_KEY, name.span, message)
                        .maybe_help(did_you_mean(&name.text, CLAIMS.iter().map(|(name, _)| *name))),
                );
            }
            let parsed = ClaimPath::parse(path);
            if parsed.is_none() {
                let help = "write `$.role`, `$.realm_access.roles[0]` or `$['https://example.com/role']`";
                bad(path.span, "this is not a path into a token", help, out);
            }
            claims.extend(known.zip(parsed).map(|((_, claim), path)| (*claim, path)));
        }
        self.providers.push(ProviderPolicy {
            issuer: issuer.value.clone(),
            jwks: declared.jwks.value.clone(),
            audience: declared.audience.clone(),
            claims,
        });
    }
}

/// Keys that come over plain HTTP can be anybody's.
fn check_url(jwks: &Spanned<String>, out: &mut Diagnostics) {
    let url = Url::parse(jwks);
    let local = |url: &Url| match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    match &url {
        Ok(url) if url.scheme() == "https" => {}
        Ok(url) if url.scheme() == "http" && local(url) => {}
        Ok(url) if url.scheme() == "http" => out.push(
            Diagnostic::warning(Code::LOOSENED, jwks.span, "the key set is fetched without TLS")
                .help("who can answer for this address can sign tokens: use https"),
        ),
        _ => bad(jwks.span, "this is not the address of a key set", "write `https://…/jwks.json`", out),
    }
}

fn bad(span: crate::diag::Span, message: &str, help: &str, out: &mut Diagnostics) {
    out.push(Diagnostic::error(Code::BAD_VALUE, span, message.to_owned()).help(help));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diag::{SourceFile, Sources};
    use crate::manifest::decode::decode;
    use crate::manifest::node;

    fn read(text: &str) -> (AuthPolicy, Vec<String>) {
        let mut out = Diagnostics::new();
        let mut sources = Sources::default();
        let file = sources.add(SourceFile::new("a", text));
        let tree = node::parse(file, sources.get(file).unwrap(), &mut out).unwrap();
        let auth: Spanned<Auth> = decode(&tree, &mut out).unwrap();
        let policy = AuthPolicy::check(Some(&auth), &mut out);
        (policy, out.iter().map(|fault| format!("{} {}", fault.code, fault.message)).collect())
    }

    #[test]
    fn what_is_left_out_is_as_documented() {
        let (policy, faults) = read("{}");
        assert_eq!(faults, Vec::<String>::new());
        assert_eq!(policy, AuthPolicy::default());
        assert_eq!(policy.fingerprint(), AuthPolicy::check(None, &mut Diagnostics::new()).fingerprint());
        assert_ne!(policy.fingerprint(), read("issuer: other").0.fingerprint());
    }

    #[test]
    fn what_is_said_counts() {
        let (policy, faults) = read(
            "{ access_ttl: 10m, ticket_ttl: 10s, refresh_grace: 0s, token_from: [cookie], lockout: { failures: 3, window: 1m, lock_for: 2m }, password: { min_length: 12, require: [symbol] }, \
             providers: [{ issuer: sso, jwks: 'https://sso.example/jwks', claims: { role: '$.roles[0]' } }] }",
        );
        assert_eq!(faults, Vec::<String>::new());
        assert_eq!(policy.renew_within, Duration::from_secs(300), "the default stays under a short lifetime");
        assert_eq!(policy.refresh_grace, Duration::ZERO);
        assert_eq!(policy.ticket_ttl, Duration::from_secs(10));
        assert_eq!(policy.token_from, [TokenSource::Cookie]);
        assert_eq!(policy.lockout.failures, 3);
        assert_eq!(policy.password.require, [CharacterClass::Symbol]);
        assert_eq!(policy.providers[0].claims[0].0, Claim::Role);
    }

    #[test]
    fn contradictions_are_faults() {
        for (text, wanted) in [
            ("issuer: ''", "VG011"),
            ("{ access_ttl: 1h, renew_within: 1h }", "VG060"),
            ("access_ttl: 7d", "VG060"),
            ("{ access_ttl: 1h, refresh_ttl: 2h, refresh_grace: 2h }", "VG060"),
            ("refresh_grace: 1s", "VG063"),
            ("ticket_ttl: 2m", "VG063"),
            ("ticket_ttl: 2h", "VG011"),
            ("token_from: [header, header]", "VG011"),
            ("lockout: { failures: 0, window: 1m, lock_for: 1m }", "VG011"),
            ("password: { bcrypt_cost: 31 }", "VG011"),
            ("password: { bcrypt_cost: 4 }", "VG063"),
            ("password: { min_length: 100 }", "VG011"),
            ("providers: [{ issuer: voicehelper-api, jwks: 'https://a/b' }]", "VG011"),
            ("providers: [{ issuer: a, jwks: 'http://sso.example/b' }]", "VG063"),
            ("providers: [{ issuer: a, jwks: 'ftp://a/b' }]", "VG011"),
            ("providers: [{ issuer: a, jwks: 'https://a/b', claims: { rol: '$.a' } }]", "VG010"),
            ("providers: [{ issuer: a, jwks: 'https://a/b', claims: { role: 'a.b' } }]", "VG011"),
        ] {
            let faults = read(text).1;
            assert_eq!(faults.len(), 1, "{text}: {faults:?}");
            assert!(faults[0].starts_with(wanted), "{text}: {faults:?}");
        }
    }
}

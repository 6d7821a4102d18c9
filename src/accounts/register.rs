//! Registering: what may be chosen, and what is the server's (SECURITY rule 9).

use super::passwords::faults as password_faults;
use super::{Accounts, DEFAULT_ROLE, DEFAULT_TENANT, Session, audit, fault};
use crate::error::{FieldFault, GatewayError, Kind};
use crate::stores::{NewUser, StoreError, User};

/// What a new user chooses.
pub struct Registration {
    /// 3 to 50 letters, digits and underscores.
    pub username: String,
    /// For links to a new password.
    pub email: String,
    /// By the manifest's rules.
    pub password: String,
}

impl Accounts {
    /// Makes a user with the default role in the default tenant, and logs it in.
    ///
    /// # Errors
    /// 400 naming each failed rule, 409 where username or e-mail are taken, 503 where hashing is overloaded.
    pub async fn register(&self, asked: Registration, channel: &str) -> Result<Session, GatewayError> {
        let user = self.create(asked, DEFAULT_ROLE).await?;
        let session = self.begin(user, channel, self.now()).await?;
        audit::own(&session.user.id, "register", channel);
        Ok(session)
    }

    /// Makes a user with a role.
    pub(super) async fn create(&self, asked: Registration, role: &str) -> Result<User, GatewayError> {
        let rules = self.authority.rules();
        let mut faults: Vec<FieldFault> = username_fault(&asked.username).into_iter().collect();
        faults.extend(email_fault(&asked.email));
        faults.extend(password_faults("/password", &asked.password, rules.min_length, &rules.require));
        if !faults.is_empty() {
            return Err(GatewayError::invalid(faults));
        }
        // Before hashing, so that a name that is taken costs no core. The rows' own uniqueness decides below.
        for found in [
            self.store.user_by_name(DEFAULT_TENANT, &asked.username).await,
            self.store.user_by_email(DEFAULT_TENANT, &asked.email).await,
        ] {
            match found {
                Ok(_) => return Err(Kind::AccountExists.into()),
                Err(StoreError::NotFound) => {}
                Err(error) => return Err(fault(error)),
            }
        }
        let hash = self.passwords.turn().await?.hash(asked.password, rules.bcrypt_cost).await?;
        let user = NewUser {
            id: uuid::Uuid::new_v4().to_string(),
            tenant_id: DEFAULT_TENANT.to_owned(),
            username: asked.username,
            email: Some(asked.email),
            password_hash: Some(hash),
            role: role.to_owned(),
            openid: None,
        };
        match self.store.create_user(user, self.now()).await {
            Ok(user) => Ok(user),
            Err(StoreError::Conflict(_)) => Err(Kind::AccountExists.into()),
            Err(error) => Err(fault(error)),
        }
    }
}

fn username_fault(name: &str) -> Option<FieldFault> {
    let good = (3..=50).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    (!good).then(|| {
        FieldFault::new(
            "/username",
            "username",
            "must have 3 to 50 letters, digits or underscores",
            "用户名须为 3-50 个字母、数字或下划线",
        )
    })
}

/// Addresses of the usual form (a subset of RFC 5321, section 4.1.2): no quotes, no comments, a domain with a dot.
fn email_fault(address: &str) -> Option<FieldFault> {
    let good = address.len() <= 254
        && address.split_once('@').is_some_and(|(local, domain)| {
            let atom = |atom: &str| {
                !atom.is_empty()
                    && atom.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&b))
            };
            let label = |label: &str| {
                (1..=63).contains(&label.len())
                    && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                    && !label.starts_with('-')
                    && !label.ends_with('-')
            };
            local.len() <= 64
                && local.split('.').all(atom)
                && domain.contains('.')
                && domain.split('.').all(label)
        });
    (!good).then(|| FieldFault::new("/email", "email", "must be an e-mail address", "邮箱格式无效"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usernames_are_ascii_words() {
        for good in ["ann", "Ann_01", &"a".repeat(50)] {
            assert!(username_fault(good).is_none(), "{good}");
        }
        for bad in ["an", &"a".repeat(51), "ann lee", "ann<b>", "ａｎｎ", "ann\n", "a@b.cn"] {
            assert!(username_fault(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn addresses_cannot_carry_anything_else() {
        for good in ["ann@example.com", "a.b+c@mail.example.co.uk"] {
            assert!(email_fault(good).is_none(), "{good}");
        }
        for bad in [
            "ann",
            "ann@localhost",
            "@example.com",
            "a..b@example.com",
            "ann@-x.com",
            "ann@x..com",
            "ann@example.com\r\nBcc: x@y.cn",
            "a@b@c.cn",
            "\"a b\"@c.cn",
            "ann@例子.cn",
        ] {
            assert!(email_fault(bad).is_some(), "{bad}");
        }
    }
}

//! TLS for the listener: rustls with the ring provider, TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN.
//!
//! Certificates are renewed under running servers, so the pair is read again on request and new handshakes use it;
//! connections that stand go on. A pair that does not load leaves the old one in use.
use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject as _};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        crypto::{CryptoProvider, ring},
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
    },
};

/// Why TLS can't be set up. Each says which file and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file can't be read.
    #[error(
        "can't read the TLS {what} {path}: {source}; check that the path is right and readable by this user"
    )]
    Unreadable {
        /// `certificate` or `private key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not PEM, or holds nothing of the kind.
    #[error("the TLS {what} {path} can't be used: {reason}; {remedy}")]
    Malformed {
        /// `certificate` or `private key`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What a good file looks like.
        remedy: &'static str,
    },
    /// Key and certificate do not belong together, or are of an unknown kind.
    #[error(
        "the TLS private key {key} does not serve the certificate {certificate}: {reason}; the key must be the one that the first certificate in the file was issued for"
    )]
    Mismatch {
        /// The certificate file.
        certificate: PathBuf,
        /// The key file.
        key: PathBuf,
        /// What rustls said.
        reason: rustls::Error,
    },
    /// rustls itself could not be set up.
    #[error("can't set up TLS: {0}; this build has no usable cryptography or no randomness, report it")]
    Setup(#[from] rustls::Error),
}

/// What the listener needs to speak TLS. Clones share one certificate.
#[derive(Clone)]
pub struct TlsSettings {
    config: Arc<ServerConfig>,
    pair: Arc<Pair>,
}

/// The certificate in use and where it came from.
struct Pair {
    certificate: PathBuf,
    key: PathBuf,
    provider: Arc<CryptoProvider>,
    current: ArcSwap<CertifiedKey>,
}

impl TlsSettings {
    /// Reads a PEM certificate chain (the server's first) and its PEM private key (PKCS#8, PKCS#1 or SEC1).
    ///
    /// # Errors
    /// [`TlsError`] if a file can't be read, holds nothing usable, or the two do not belong together.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let current = ArcSwap::from_pointee(read_pair(certificate, key, &provider)?);
        let pair = Pair {
            certificate: certificate.into(),
            key: key.into(),
            provider: Arc::clone(&provider),
            current,
        };
        let pair = Arc::new(pair);
        let resolver: Arc<dyn ResolvesServerCert> = Arc::clone(&pair) as _;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(resolver);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Resumption without a table that grows with the number of clients.
        config.ticketer = ring::Ticketer::new()?;
        Ok(Self { config: Arc::new(config), pair })
    }

    /// Reads the files again. Whether the certificate is another one now.
    ///
    /// # Errors
    /// As [`TlsSettings::load`]; the pair in use stays in use.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let pair = &self.pair;
        let fresh = read_pair(&pair.certificate, &pair.key, &pair.provider)?;
        if fresh.cert == pair.current.load().cert {
            return Ok(false);
        }
        pair.current.store(Arc::new(fresh));
        Ok(true)
    }

    /// Reloads every `period`, for ever. Files are small and certificates change rarely, so looking is simpler than
    /// watching and sees what file events miss (renames, swapped symlinks, network mounts).
    pub async fn keep_fresh(self, period: Duration) {
        loop {
            tokio::time::sleep(period).await;
            let settings = self.clone();
            let certificate = self.pair.certificate.display();
            match tokio::task::spawn_blocking(move || settings.reload()).await {
                Ok(Ok(true)) => tracing::info!(%certificate, "new TLS certificate in use"),
                Ok(Ok(false)) | Err(_) => {}
                Ok(Err(error)) => {
                    tracing::error!(%error, "the new TLS certificate is refused, the old one stays in use")
                }
            }
        }
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }
}

impl fmt::Debug for TlsSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSettings").field("certificate", &self.pair.certificate).finish_non_exhaustive()
    }
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Pair {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn read_pair(certificate: &Path, key: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
    let text = read(certificate, "certificate")?;
    let chain = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let chain = match chain {
        Ok(chain) if !chain.is_empty() => chain,
        other => {
            return Err(TlsError::Malformed {
                what: "certificate",
                path: certificate.into(),
                reason: other
                    .err()
                    .map_or_else(|| "it holds no certificate".into(), |error| error.to_string()),
                remedy: "it must be PEM with `-----BEGIN CERTIFICATE-----` blocks, the server's own first",
            });
        }
    };
    let text = read(key, "private key")?;
    let parsed = PrivateKeyDer::from_pem_slice(&text).map_err(|error| TlsError::Malformed {
        what: "private key",
        path: key.into(),
        reason: match error {
            pem::Error::NoItemsFound => "it holds no private key".into(),
            other => other.to_string(),
        },
        remedy: "it must be PEM with one unencrypted `-----BEGIN PRIVATE KEY-----` block",
    })?;
    CertifiedKey::from_der(chain, parsed, provider).map_err(|reason| TlsError::Mismatch {
        certificate: certificate.into(),
        key: key.into(),
        reason,
    })
}

fn read(path: &Path, what: &'static str) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Unreadable { what, path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_pair(at: &Path) -> (PathBuf, PathBuf) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let (certificate, key) = (at.join("tls.crt"), at.join("tls.key"));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        (certificate, key)
    }

    #[test]
    fn faults_name_the_file_and_the_remedy() {
        let here = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let (certificate, key) = write_pair(here.path());
        let (_, foreign_key) = write_pair(other.path());
        let missing = here.path().join("missing.pem");
        for (certificate, key, words) in [
            (&missing, &key, ["certificate", "missing.pem", "check that the path"]),
            (&certificate, &missing, ["private key", "missing.pem", "check that the path"]),
            (&key, &key, ["tls.key", "no certificate", "BEGIN CERTIFICATE"]),
            (&certificate, &certificate, ["tls.crt", "no private key", "BEGIN PRIVATE KEY"]),
            (&certificate, &foreign_key, ["tls.key", "tls.crt", "first certificate"]),
        ] {
            let text = TlsSettings::load(certificate, key).unwrap_err().to_string();
            for word in words {
                assert!(text.contains(word), "{text}");
            }
        }
    }

    #[test]
    fn a_renewed_pair_is_taken_and_a_broken_one_is_not() {
        let here = tempfile::tempdir().unwrap();
        let (certificate, key) = write_pair(here.path());
        let settings = TlsSettings::load(&certificate, &key).unwrap();
        assert!(!settings.reload().unwrap());
        let first = settings.pair.current.load_full();
        write_pair(here.path());
        assert!(settings.reload().unwrap());
        let second = settings.pair.current.load_full();
        assert_ne!(first.cert, second.cert);
        std::fs::write(&key, "half a ke").unwrap();
        settings.reload().unwrap_err();
        assert_eq!(settings.pair.current.load().cert, second.cert);
    }
}

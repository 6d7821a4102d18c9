//! TLS towards servers: whom to trust, read and parsed when the manifest is checked.

use crate::diag::{Code, Diagnostic, Diagnostics};
use crate::manifest::Manifest;
use crate::manifest::model::UpstreamTls;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::hash::{DefaultHasher, Hash};
use std::sync::Arc;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

/// HTTP/1.1 (or `http2`) over TLS, trusting the public authorities or those of `tls.ca`. The file's content is part of
/// the fingerprint.
pub(super) fn client_config(
    decl: Option<&UpstreamTls>,
    manifest: &Manifest,
    http2: bool,
    state: &mut DefaultHasher,
    out: &mut Diagnostics,
) -> Option<Arc<ClientConfig>> {
    let roots = match decl.and_then(|tls| tls.ca.as_ref()) {
        None => RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() },
        Some(ca) => {
            let path = manifest.folder(ca.span).join(&ca.value);
            let pem = match std::fs::read(&path) {
                Ok(pem) => pem,
                Err(error) => {
                    let message = format!("cannot read the authorities' file: {error}");
                    out.push(
                        Diagnostic::error(Code::UNREADABLE, ca.span, message)
                            .help("the path is relative to the file it stands in"),
                    );
                    return None;
                }
            };
            pem.hash(state);
            let mut roots = RootCertStore::empty();
            let added = CertificateDer::pem_slice_iter(&pem)
                .all(|der| der.ok().is_some_and(|der| roots.add(der).is_ok()));
            if !added || roots.is_empty() {
                out.push(
                    Diagnostic::error(Code::BAD_VALUE, ca.span, "the file holds no usable certificate")
                        .help("it must be PEM: -----BEGIN CERTIFICATE----- and so on"),
                );
                return None;
            }
            roots
        }
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the ring provider has the suites of TLS 1.2 and 1.3");
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Some(Arc::new(config))
}

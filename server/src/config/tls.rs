//! HTTPS.

use std::path::PathBuf;

/// Why TLS can't be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A PEM file can't be read.
    #[error("cannot read {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Certificate and key don't make a server.
    #[error("certificate and key can't be used: {reason}")]
    Invalid {
        /// Why.
        reason: String,
    },
    /// This program was built without the feature `tls`.
    #[error("this program was built without the feature `tls`")]
    NotBuilt,
}

#[cfg(feature = "tls")]
mod built {
    use std::fmt;
    use std::path::Path;
    use std::sync::Arc;

    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio_rustls::TlsAcceptor;

    use super::TlsError;

    /// A certificate and its key.
    #[derive(Clone)]
    pub struct Tls(TlsAcceptor);

    impl Tls {
        /// Reads a chain of certificates and the key of its first one, in PEM files.
        ///
        /// # Errors
        ///
        /// [`TlsError`].
        pub fn from_files(certificates: &Path, key: &Path) -> Result<Self, TlsError> {
            let read = |path: &Path, reason: &dyn fmt::Display| TlsError::Read {
                path: path.to_owned(),
                reason: reason.to_string(),
            };
            let chain = CertificateDer::pem_file_iter(certificates)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|error| read(certificates, &error))?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| read(key, &error))?;
            let invalid = |error: rustls::Error| TlsError::Invalid { reason: error.to_string() };
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let mut config = rustls::ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(invalid)?
                .with_no_client_auth()
                .with_single_cert(chain, key)
                .map_err(invalid)?;
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Ok(Self(TlsAcceptor::from(Arc::new(config))))
        }

        pub(crate) fn acceptor(&self) -> &TlsAcceptor {
            &self.0
        }
    }

    impl fmt::Debug for Tls {
        fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.debug_struct("Tls").finish_non_exhaustive()
        }
    }
}

#[cfg(not(feature = "tls"))]
mod built {
    use std::path::Path;

    use super::TlsError;

    /// A certificate and its key: needs the feature `tls`.
    #[derive(Clone, Debug)]
    pub enum Tls {}

    impl Tls {
        /// Always an error without the feature.
        ///
        /// # Errors
        ///
        /// [`TlsError::NotBuilt`].
        pub fn from_files(_certificates: &Path, _key: &Path) -> Result<Self, TlsError> {
            Err(TlsError::NotBuilt)
        }
    }
}

pub use built::Tls;

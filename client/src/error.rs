//! How a call can fail, as its caller needs to know it: did it certainly change nothing, or is that unknown?

use quorate_metadata::{ApiError, ErrorName};
use quorate_proto::{admin, error};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// Refused, or never carried out: nothing was changed.
    #[error("{0}")]
    Failed(ApiError),
    /// Sent, and maybe carried out.
    #[error("{0}")]
    Unknown(ApiError),
}

impl ClientError {
    pub fn failed(name: ErrorName, message: impl Into<String>) -> Self {
        Self::Failed(ApiError::new(name, message))
    }

    pub fn error(&self) -> &ApiError {
        match self {
            Self::Failed(error) | Self::Unknown(error) => error,
        }
    }

    pub fn name(&self) -> ErrorName {
        self.error().name
    }

    /// Whether nothing was changed for certain.
    pub fn is_definite(&self) -> bool {
        matches!(self, Self::Failed(_))
    }
}

impl From<ApiError> for ClientError {
    fn from(error: ApiError) -> Self {
        if error.is_definite() { Self::Failed(error) } else { Self::Unknown(error) }
    }
}

/// The error of one item of a reply, where it has one.
pub fn check_item(item: Option<&admin::Error>) -> Result<(), ClientError> {
    item.map_or(Ok(()), |item| Err(error::from_item(item).into()))
}

/// A bootstrap address that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAddress {
    #[error("no bootstrap address is given")]
    None,
    #[error("bootstrap address \"{0}\" is not of the form host:port")]
    Malformed(String),
    #[error("the TLS configuration cannot be used: {0}")]
    Tls(String),
}

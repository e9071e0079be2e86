//! Labels that several kinds of metrics have.

use prometheus_client::encoding::EncodeLabelSet;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct ByApp {
    pub(crate) app: String,
}

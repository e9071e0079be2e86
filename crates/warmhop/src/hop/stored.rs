//! A response as it is stored for a repeat of its request.

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};
use warmhop_core::session::message::Stored;

use crate::hop::head::{HEAD_BYTES_MAX, fields_in, fields_out};
use crate::http::body::{Body, BoxError};
use crate::links::wire;

/// A response as it is stored for a repeat of its request.
#[derive(Serialize, Deserialize)]
struct StoredResponse {
    status: u16,
    fields: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

/// Collects a response to store it, if it is at most `bytes_max` long; the response itself is
/// passed on unchanged either way.
pub(crate) async fn store_response(
    response: Response<Body>,
    bytes_max: usize,
) -> Result<(Response<Body>, Stored), BoxError> {
    let (parts, mut body) = response.into_parts();
    let mut collected = bytes::BytesMut::new();
    let mut later = None;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if collected.len() + data.len() > bytes_max {
            later = Some(data);
            break;
        }
        collected.extend_from_slice(&data);
    }
    let collected = collected.freeze();
    if let Some(next) = later {
        let body = Body::resumed(vec![collected, next], body);
        return Ok((Response::from_parts(parts, body), Stored::TooLarge));
    }
    let stored = StoredResponse {
        status: parts.status.as_u16(),
        fields: fields_out(&parts.headers),
        body: collected.to_vec(),
    };
    let encoded = wire::encode(&stored, bytes_max.saturating_add(128 * 1024))?;
    let response = Response::from_parts(parts, Body::from(collected));
    Ok((response, Stored::Response(encoded.as_ref().into())))
}

/// The stored response, for a repeat of its request.
pub(crate) fn restore_response(stored: &[u8]) -> Option<Response<Body>> {
    let stored: StoredResponse = wire::decode::<_, HEAD_BYTES_MAX>(stored).ok()?;
    let mut response = Response::new(Body::from(Bytes::from(stored.body)));
    *response.status_mut() = StatusCode::from_u16(stored.status).ok()?;
    *response.headers_mut() = fields_in(stored.fields)?;
    Some(response)
}

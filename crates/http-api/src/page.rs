//! `/`, the page for people, and `/docs`, the page about the API. Everything they show is in the binary.

use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};

/// Nothing from elsewhere, nothing inline, no frame around it.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
     img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

fn asset(content_type: &'static str, text: &'static str) -> Response {
    let headers: [(HeaderName, HeaderValue); 3] = [
        (header::CONTENT_TYPE, HeaderValue::from_static(content_type)),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY)),
        (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    (headers, text).into_response()
}

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// `GET /`.
pub(crate) async fn page() -> Response {
    asset(HTML, include_str!("page/index.html"))
}

/// `GET /page.js`.
pub(crate) async fn script() -> Response {
    asset(SCRIPT, include_str!("page/page.js"))
}

/// `GET /page.css`, for both pages.
pub(crate) async fn style() -> Response {
    asset("text/css; charset=utf-8", include_str!("page/page.css"))
}

/// `GET /docs`.
pub(crate) async fn docs() -> Response {
    asset(HTML, include_str!("page/docs.html"))
}

/// `GET /docs.js`.
pub(crate) async fn docs_script() -> Response {
    asset(SCRIPT, include_str!("page/docs.js"))
}

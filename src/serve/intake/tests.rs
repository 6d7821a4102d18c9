use super::*;
use http::Request;

/// A head; `host` and others are given as fields.
fn head(method: &str, version: Version, target: &str, fields: &[(&str, &str)]) -> Parts {
    let mut request = Request::builder().method(method).version(version).uri(target);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn get(target: &str, fields: &[(&str, &str)]) -> Parts {
    head("GET", Version::HTTP_11, target, fields)
}

fn refused(parts: &Parts) -> Refusal {
    admit(parts, false, &IntakeLimits::default()).unwrap_err()
}

#[test]
fn an_ordinary_request_is_only_borrowed_from() {
    let parts = get("/api/v01/sessions?limit=3", &[("host", "api.example.com:8080")]);
    let admitted = admit(&parts, false, &IntakeLimits::default()).unwrap();
    assert_eq!(admitted, Admitted { path: "/api/v01/sessions".into(), host: "api.example.com".into() });
    assert!(matches!(admitted.path, Cow::Borrowed(_)) && matches!(admitted.host, Cow::Borrowed(_)));
}

#[test]
fn hosts_have_one_spelling() {
    for (given, host) in [
        ("API.Example.com", "api.example.com"),
        ("example.com.", "example.com"),
        ("example.com.:80", "example.com"),
        ("example.com:", "example.com"),
        ("document_service:8002", "document_service"),
        ("127.0.0.1:80", "127.0.0.1"),
        ("[::1]:80", "[::1]"),
        ("[FE80::A]", "[fe80::a]"),
        ("1.example2", "1.example2"),
    ] {
        let parts = get("/", &[("host", given)]);
        assert_eq!(admit(&parts, false, &IntakeLimits::default()).unwrap().host, host);
    }
}

#[test]
fn bad_hosts_are_refused() {
    let long = "a".repeat(64);
    for given in [
        "",
        " ",
        ":80",
        "a b",
        "a/b",
        "a@b",
        "user@a",
        "a..b",
        ".a",
        "a:80:80",
        "a:x",
        "a:65536",
        "a:+1",
        "[::1",
        "[::1]x",
        "[zz]",
        "[::1%25eth0]",
        "a%2eb",
        "a,b",
        "é",
        "127.1",
        "1.2.3.256",
        "0x7f.0.0.0x1",
        "2130706433",
        &long,
    ] {
        let mut parts = get("/", &[]);
        parts.headers.insert("host", HeaderValue::from_bytes(given.as_bytes()).unwrap());
        assert_eq!(refused(&parts).kind.code(), "invalid_host", "{given:?}");
    }
    assert_eq!(refused(&get("/", &[])).kind.code(), "invalid_host");
    assert_eq!(refused(&get("/", &[("host", "a"), ("host", "a")])).kind.code(), "invalid_host");
    assert_eq!(refused(&head("GET", Version::HTTP_2, "/", &[])).kind.code(), "invalid_host");
    let old = head("GET", Version::HTTP_10, "/", &[]);
    assert_eq!(admit(&old, false, &IntakeLimits::default()).unwrap().host, "");
}

#[test]
fn host_and_authority_agree_or_it_is_refused() {
    let of = |target, fields: &[_], version, tls| {
        let parts = head("GET", version, target, fields);
        admit(&parts, tls, &IntakeLimits::default()).map(|admitted| admitted.host.into_owned())
    };
    let (h1, h2) = (Version::HTTP_11, Version::HTTP_2);
    assert_eq!(of("http://A.b:80/x", &[("host", "a.B")], h1, false).unwrap(), "a.b");
    assert_eq!(of("https://a.b/x", &[("host", "a.b:443")], h2, true).unwrap(), "a.b");
    assert_eq!(of("https://a.b/x", &[], h2, true).unwrap(), "a.b");
    for (target, fields, version, tls) in [
        ("http://a.b/x", &[("host", "c.d")][..], h1, false),
        ("https://a.b/x", &[("host", "c.d")], h2, true),
        ("https://a.b/x", &[("host", "a.b:80")], h2, true),
        ("http://a.b:81/x", &[("host", "a.b")], h1, false),
        ("http://a.b/x", &[], h1, false),
        ("https://a.b/x", &[("host", "a.b"), ("host", "a.b")], h2, true),
    ] {
        assert_eq!(
            of(target, fields, version, tls).unwrap_err().kind.code(),
            "invalid_host",
            "{target} {fields:?}"
        );
    }
    for target in ["http://user@a.b/x", "ftp://a.b/x", "a.b:80"] {
        assert_eq!(
            of(target, &[("host", "a.b")], h1, false).unwrap_err().kind.code(),
            "invalid_target",
            "{target}"
        );
    }
}

#[test]
fn methods_and_targets() {
    let host = &[("host", "a")][..];
    for (method, target, code) in [
        ("TRACE", "/", "method_not_allowed"),
        ("CONNECT", "a:80", "method_not_allowed"),
        ("GET", "*", "invalid_target"),
        ("POST", "/a/../b", "invalid_path"),
        ("POST", "/a//b", "invalid_path"),
    ] {
        let refusal = refused(&head(method, Version::HTTP_11, target, host));
        assert_eq!(refusal.kind.code(), code, "{method} {target}");
        assert_eq!(refusal.kind.status() == StatusCode::METHOD_NOT_ALLOWED, code == "method_not_allowed");
    }
    let options = head("OPTIONS", Version::HTTP_11, "*", host);
    assert_eq!(admit(&options, false, &IntakeLimits::default()).unwrap().path, "*");
}

#[test]
fn framing_that_could_be_read_differently_ends_the_connection() {
    let (h1, h2) = (Version::HTTP_11, Version::HTTP_2);
    for (version, fields) in [
        (h1, &[("content-length", "3"), ("transfer-encoding", "chunked")][..]),
        (h1, &[("content-length", "3"), ("content-length", "4")]),
        (h1, &[("content-length", "3, 3")]),
        (h1, &[("content-length", "+3")]),
        (h1, &[("content-length", "")]),
        (h1, &[("transfer-encoding", "gzip, chunked")]),
        (h1, &[("transfer-encoding", "identity")]),
        (h1, &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]),
        (h1, &[("transfer-encoding", "xchunked")]),
        (Version::HTTP_10, &[("transfer-encoding", "chunked")]),
        (h2, &[("transfer-encoding", "chunked")]),
        (h1, &[("upgrade", "websocket"), ("content-length", "3")]),
        (h1, &[("upgrade", "websocket"), ("transfer-encoding", "chunked")]),
        (h1, &[("upgrade", "h2c"), ("upgrade", "websocket"), ("content-length", "3")]),
    ] {
        let mut parts = head("POST", version, "/", fields);
        parts.headers.insert("host", HeaderValue::from_static("a"));
        let refusal = refused(&parts);
        assert_eq!((refusal.kind.code(), refusal.close), ("invalid_framing", true), "{fields:?}");
    }
    for fields in [
        &[("content-length", "3"), ("content-length", "3")][..],
        &[("transfer-encoding", "Chunked")],
        &[("upgrade", "websocket"), ("content-length", "0")],
        &[("upgrade", "h2c"), ("content-length", "3")],
    ] {
        let mut parts = head("POST", h1, "/", fields);
        parts.headers.insert("host", HeaderValue::from_static("a"));
        admit(&parts, false, &IntakeLimits::default()).unwrap();
    }
    let mut seen = get("/", &[("host", "a"), ("transfer-encoding", "chunked")]);
    seen.extensions.insert(AmbiguousLength);
    assert!(refused(&seen).close);
}

#[test]
fn too_long_and_too_many() {
    let limits = IntakeLimits { max_uri_bytes: 10, max_headers: 3 };
    let at = |target, fields: &[_]| {
        admit(&get(target, fields), false, &limits).map(drop).map_err(|refusal| refusal.kind.status())
    };
    let host = ("host", "a");
    assert_eq!(at("/123456789", &[host]), Ok(()));
    assert_eq!(at("/12345?789x", &[host]), Err(StatusCode::URI_TOO_LONG));
    assert_eq!(at("/", &[host, ("a", "1"), ("b", "2")]), Ok(()));
    let too_large = Err(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    assert_eq!(at("/", &[host, ("a", "1"), ("b", "2"), ("c", "3")]), too_large);
    let crumbs = [host, ("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")];
    assert_eq!(at("/", &crumbs), Ok(()));
}

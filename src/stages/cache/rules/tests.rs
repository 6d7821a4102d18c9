use super::*;

const TIMES: Times = Times { ttl: Duration::from_secs(30), stale: Duration::from_secs(60) };

/// When the answers of these tests come; `Date` says the same where it says anything.
fn now() -> SystemTime {
    httpdate::parse_http_date(NOW).unwrap()
}

const NOW: &str = "Tue, 15 Nov 1994 08:12:31 GMT";
const TEN_SECONDS_AGO: &str = "Tue, 15 Nov 1994 08:12:21 GMT";
const IN_TEN_SECONDS: &str = "Tue, 15 Nov 1994 08:12:41 GMT";

fn headers(lines: &[&str]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap();
        let value = HeaderValue::from_str(value).unwrap();
        headers.append(HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()).unwrap(), value);
    }
    headers
}

/// `age fresh stale` in seconds, or why it is not kept.
fn said(status: u16, lines: &[&str], personal: bool) -> String {
    match lifetime(TIMES, StatusCode::from_u16(status).unwrap(), &headers(lines), personal, now()) {
        Ok(Lifetime { age, fresh, stale }) => {
            format!("{} {} {}", age.as_secs(), fresh.as_secs(), stale.as_secs())
        }
        Err(Unkept::Now) => "not now".to_owned(),
        Err(Unkept::Ever) => "never".to_owned(),
    }
}

#[test]
fn rfc_9111_on_answers() {
    let expires_soon = format!("Expires: {IN_TEN_SECONDS}");
    let expired = format!("Expires: {TEN_SECONDS_AGO}");
    let dated = format!("Date: {NOW}");
    let old = format!("Date: {TEN_SECONDS_AGO}");
    // Section, status, headers, what becomes of the answer.
    let cases: &[(&str, u16, &[&str], &str)] = &[
        ("3, no word: the route's ttl", 200, &[], "0 30 60"),
        ("3, final statuses", 203, &[], "0 30 60"),
        ("3, final statuses", 204, &[], "0 30 60"),
        ("3, final statuses", 301, &[], "0 30 60"),
        ("3, final statuses", 404, &[], "0 30 60"),
        ("3, final statuses", 410, &[], "0 30 60"),
        ("3, one that is about a request", 401, &[], "never"),
        ("3, one that is about a request", 303, &[], "never"),
        ("3.4, a part", 206, &["Content-Range: bytes 0-1/2"], "never"),
        ("3, a fault passes", 500, &["Cache-Control: max-age=60"], "not now"),
        ("3, a fault passes", 503, &[], "not now"),
        ("3, a fault passes", 429, &[], "not now"),
        ("5.2.2.5 no-store", 200, &["Cache-Control: no-store"], "never"),
        ("5.2.2.5, any case, in a list", 200, &["Cache-Control: max-age=9, NO-Store"], "never"),
        ("5.2.2.5, in a second line", 200, &["Cache-Control: max-age=9", "Cache-Control: no-store"], "never"),
        (
            "5.2.2.5, not within a quoted string",
            200,
            &["Cache-Control: x=\"a, no-store\", max-age=9"],
            "0 9 60",
        ),
        ("5.2.2.7 private", 200, &["Cache-Control: private"], "never"),
        ("5.2.2.7, with fields", 200, &["Cache-Control: private=\"x-a\""], "never"),
        ("5.2.2.4 no-cache", 200, &["Cache-Control: no-cache"], "never"),
        ("5.2.2.1 max-age", 200, &["Cache-Control: max-age=10"], "0 10 60"),
        ("5.2.2.1, the ttl caps it", 200, &["Cache-Control: max-age=1000"], "0 30 60"),
        ("5.2.2.1, quoted", 200, &["Cache-Control: max-age=\"10\""], "0 10 60"),
        (
            "1.2.2, more than anybody counts",
            200,
            &["Cache-Control: max-age=99999999999999999999999"],
            "0 30 60",
        ),
        ("4.2.1, not readable is stale", 200, &["Cache-Control: max-age=soon"], "never"),
        ("4.2.1, twice: the shorter", 200, &["Cache-Control: max-age=20, max-age=5"], "0 5 60"),
        (
            "5.2.2.10 s-maxage goes first, and is never stale",
            200,
            &["Cache-Control: max-age=20, s-maxage=5"],
            "0 5 0",
        ),
        ("5.2.2.10, none", 200, &["Cache-Control: s-maxage=0, max-age=20"], "never"),
        ("5.3 Expires", 200, &[&dated, &expires_soon], "0 10 60"),
        ("5.3, max-age goes first", 200, &[&expires_soon, "Cache-Control: max-age=20"], "0 20 60"),
        ("5.3, passed", 200, &[&dated, &expired], "never"),
        ("5.3, not readable has passed", 200, &["Expires: 0"], "never"),
        ("4.2.3 Age takes from max-age", 200, &["Cache-Control: max-age=25", "Age: 10"], "10 15 60"),
        ("4.2.3, Date does too", 200, &["Cache-Control: max-age=25", &old], "10 15 60"),
        ("4.2.3, used up", 200, &["Cache-Control: max-age=10", "Age: 10"], "never"),
        ("4.2.3, does not touch the route's ttl", 200, &["Age: 100"], "100 30 60"),
        ("5.2.2.2 must-revalidate is never stale", 200, &["Cache-Control: must-revalidate"], "0 30 0"),
        ("5.2.2.8 proxy-revalidate is never stale", 200, &["Cache-Control: proxy-revalidate"], "0 30 0"),
        ("RFC 5861, 3", 200, &["Cache-Control: stale-while-revalidate=5"], "0 30 5"),
        ("RFC 5861, 3, capped", 200, &["Cache-Control: stale-while-revalidate=500"], "0 30 60"),
        ("4.1, a list of names", 200, &["Vary: Accept-Language, accept-encoding"], "0 30 60"),
        ("4.1, anything", 200, &["Vary: *"], "never"),
        ("4.1, anything, among names", 200, &["Vary: accept, *"], "never"),
        (
            "7.3, a cookie is somebody's",
            200,
            &["Set-Cookie: a=b", "Cache-Control: public, max-age=9"],
            "never",
        ),
        ("a renewed token is somebody's", 200, &["X-New-Token: t"], "never"),
        (
            "a fallback's answer is for this once",
            200,
            &["X-Degraded: respond", "Cache-Control: max-age=9"],
            "never",
        ),
        ("a stream has no end", 200, &["Content-Type: text/event-stream"], "never"),
        ("a stream has no end", 200, &["Content-Type: application/x-ndjson"], "never"),
    ];
    for (section, status, lines, expected) in cases {
        assert_eq!(said(*status, lines, false), *expected, "{section}: {status} {lines:?}");
    }
}

#[test]
fn rfc_9111_section_3_5_on_answers_to_somebody() {
    let cases: &[(&[&str], &str)] = &[
        (&[], "never"),
        (&["Cache-Control: max-age=10"], "never"),
        (&["Cache-Control: public"], "0 30 60"),
        (&["Cache-Control: s-maxage=10"], "0 10 0"),
        (&["Cache-Control: max-age=10, must-revalidate"], "0 10 0"),
        (&["Cache-Control: public, private"], "never"),
    ];
    for (lines, expected) in cases {
        assert_eq!(said(200, lines, true), *expected, "{lines:?}");
    }
    assert!(has_credentials(&headers(&["Authorization: Bearer t"])));
    assert!(has_credentials(&headers(&["Cookie: a=b"])));
    assert!(!has_credentials(&headers(&["Accept: a/b"])));
}

#[test]
fn rfc_9111_on_requests() {
    let cases: &[(&str, Method, &[&str], Option<&str>)] = &[
        ("4", Method::GET, &[], None),
        ("4", Method::HEAD, &[], None),
        ("4", Method::POST, &[], Some("fwd=method")),
        ("4", Method::OPTIONS, &[], Some("fwd=method")),
        ("3.3, parts", Method::GET, &["Range: bytes=0-1"], Some("fwd=request")),
        ("5.2.1.5 no-store", Method::GET, &["Cache-Control: no-store"], Some("fwd=request")),
        (
            "5.2.1.4 no-cache is not obeyed",
            Method::GET,
            &["Cache-Control: no-cache", "Pragma: no-cache"],
            None,
        ),
        ("5.2.1.1 max-age is not obeyed", Method::GET, &["Cache-Control: max-age=0"], None),
        ("a body is not in the key", Method::GET, &["Content-Length: 3"], Some("fwd=bypass")),
        ("a body is not in the key", Method::GET, &["Transfer-Encoding: chunked"], Some("fwd=bypass")),
        ("a body of nothing", Method::GET, &["Content-Length: 0"], None),
        ("an upgrade", Method::GET, &["Upgrade: websocket"], Some("fwd=bypass")),
    ];
    for (section, method, lines, expected) in cases {
        assert_eq!(bypasses(method, &headers(lines)), *expected, "{section}: {method} {lines:?}");
    }
}

#[test]
fn rfc_9111_section_3_1_on_what_a_copy_has() {
    let told = headers(&["ETag: \"a\"", "Age: 3", "X-Request-Id: r", "RateLimit: x", "Connection: close"]);
    let kept = kept_headers(&told);
    assert_eq!(kept.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["etag"]);
}

#[test]
fn rfc_9111_section_3_2_on_a_copy_that_is_still_good() {
    let kept = headers(&["ETag: \"a\"", "X-A: old", "X-B: kept", "Content-Type: text/plain"]);
    let told = headers(&["ETag: \"a\"", "X-A: new", "X-A: newer", "Content-Type: a/b", "Content-Length: 0"]);
    let now = freshened(&kept, &told);
    assert_eq!(now.get_all("x-a").iter().collect::<Vec<_>>(), ["new", "newer"]);
    assert_eq!(
        (&now["x-b"], &now["content-type"]),
        (&HeaderValue::from_static("kept"), &HeaderValue::from_static("text/plain"))
    );
    assert!(!now.contains_key("content-length"));
}

#[test]
fn names_of_vary_are_ordered_and_once() {
    let names = varies(&headers(&["Vary: B, a", "Vary: b"])).unwrap();
    assert_eq!(names.iter().map(HeaderName::as_str).collect::<Vec<_>>(), ["a", "b"]);
    assert!(varies(&headers(&[])).unwrap().is_empty());
    assert!(varies(&headers(&["Vary: a b"])).is_none(), "no name");
}

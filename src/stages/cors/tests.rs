use super::super::testing::{answering, build, check, code, request, send, target};
use super::super::{Next, fold};
use super::policy::{DEFAULT_HEADERS, not_an_origin};
use super::*;
use std::collections::BTreeMap;

const POLICIES: &str = "\
cors:
  default: { origins: [\"http://localhost:3000\", \"https://app.example.com\"], credentials: true, expose: [X-New-Token, X-Request-ID] }
  open: { origins: [\"*\"] }
  local: { origins: [\"null\"], methods: [GET, PUT], headers: [X-A], max_age: 1m }
";
const APP: (&str, &str) = ("origin", "https://app.example.com");

fn chain(stage: &str, method: &str, target: Next) -> Next {
    let stage = check(stage, POLICIES).stage.expect("a sound stage");
    fold(vec![build(&stage, method, false)], target)
}

fn ok() -> Next {
    answering(|| {
        Response::builder().header("vary", "Accept").header("access-control-allow-origin", "*").finish()
    })
}

/// The headers of an answer that CORS is about.
fn about(response: &Response) -> BTreeMap<String, String> {
    response
        .headers()
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("access-control-") || *name == "vary")
        .fold(BTreeMap::new(), |mut all, (name, value)| {
            let text = value.to_str().unwrap();
            all.entry(name.to_string())
                .and_modify(|old| *old = format!("{old}, {text}"))
                .or_insert(text.into());
            all
        })
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test]
async fn an_allowed_origin_gets_its_headers() {
    let response = send(&chain("cors: default", "GET", ok()), request(Method::GET, &[APP])).await;
    let wanted = [
        ("access-control-allow-origin", "https://app.example.com"),
        ("access-control-allow-credentials", "true"),
        ("access-control-expose-headers", "X-New-Token, X-Request-ID"),
        ("vary", "Accept, Origin"),
    ];
    assert_eq!(about(&response), map(&wanted));
}

#[tokio::test]
async fn errors_carry_them_too() {
    let failing = || target(|_| async { Err(GatewayError::from(Kind::UpstreamTimeout).into()) });
    let response = send(&chain("cors", "GET", failing()), request(Method::GET, &[APP])).await;
    assert_eq!(response.status(), 504);
    assert_eq!(response.header("access-control-allow-origin"), Some("https://app.example.com"));
    assert_eq!(response.header("vary"), Some("Origin"));
}

#[tokio::test]
async fn any_other_origin_gets_none_and_never_its_own_back() {
    let next = chain("cors: default", "GET", ok());
    for origin in [
        "https://evil.example",
        "https://app.example.com.evil.example",
        "https://app.example.com/",
        "https://APP.example.com",
        "http://app.example.com",
        "https://app.example.com:443",
        "null",
        "",
        "*",
    ] {
        let response = send(&next, request(Method::GET, &[("origin", origin)])).await;
        assert_eq!(response.status(), 200);
        assert_eq!(about(&response), map(&[("vary", "Accept, Origin")]), "{origin}");
    }
    let response = send(&next, request(Method::GET, &[])).await;
    assert_eq!(
        about(&response),
        map(&[("vary", "Accept, Origin")]),
        "caches must know without an origin too"
    );
    let mut twice = request(Method::GET, &[APP]);
    twice.headers_mut().append("origin", HeaderValue::from_static("https://evil.example"));
    assert_eq!(about(&send(&next, twice).await), map(&[("vary", "Accept, Origin")]));
}

#[tokio::test]
async fn an_origin_that_is_not_ascii_is_merely_not_allowed() {
    let next = chain("cors: default", "GET", ok());
    for bytes in ["https://bücher.example".as_bytes(), b"https://\xff\xfe"] {
        let mut get = request(Method::GET, &[]);
        get.headers_mut().insert("origin", HeaderValue::from_bytes(bytes).unwrap());
        assert_eq!(about(&send(&next, get).await), map(&[("vary", "Accept, Origin")]));
        let mut preflight = request(Method::OPTIONS, &[("access-control-request-method", "GET")]);
        preflight.headers_mut().insert("origin", HeaderValue::from_bytes(bytes).unwrap());
        assert_eq!(send(&next, preflight).await.status(), 403);
    }
}

#[tokio::test]
async fn a_preflight_is_answered_here() {
    let never = || target(|_| async { panic!("a preflight does not reach the target") });
    let vary = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";
    for (route, asked, told) in
        [("POST", "POST", "POST"), ("GET", "HEAD", "GET, HEAD"), ("ANY", "PUT", "PUT")]
    {
        let preflight = request(
            Method::OPTIONS,
            &[
                APP,
                ("access-control-request-method", asked),
                ("access-control-request-headers", "x-other"),
                ("access-control-request-private-network", "true"),
            ],
        );
        let response = send(&chain("cors: default", route, never()), preflight).await;
        assert_eq!(response.status(), 204);
        let wanted = [
            ("access-control-allow-origin", "https://app.example.com"),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-methods", told),
            ("access-control-allow-headers", DEFAULT_HEADERS),
            ("access-control-max-age", "600"),
            ("vary", vary),
        ];
        assert_eq!(about(&response), map(&wanted));
    }
    let local = [("origin", "null"), ("access-control-request-method", "DELETE")];
    let response = send(&chain("cors: local", "GET", never()), request(Method::OPTIONS, &local)).await;
    let wanted = [
        ("access-control-allow-origin", "null"),
        ("access-control-allow-methods", "GET, PUT"),
        ("access-control-allow-headers", "X-A"),
        ("access-control-max-age", "60"),
        ("vary", vary),
    ];
    assert_eq!(about(&response), map(&wanted));
}

#[tokio::test]
async fn a_preflight_of_another_origin_is_refused() {
    let preflight = request(
        Method::OPTIONS,
        &[("origin", "https://evil.example"), ("access-control-request-method", "POST")],
    );
    let response = send(&chain("cors: default", "POST", ok()), preflight).await;
    assert_eq!(response.status(), 403);
    assert_eq!(about(&response).keys().collect::<Vec<_>>(), ["vary"]);
    assert_eq!(code(response).await, "origin_not_allowed");
}

#[tokio::test]
async fn options_that_is_no_preflight_goes_on() {
    let response = send(&chain("cors: default", "ANY", ok()), request(Method::OPTIONS, &[APP])).await;
    assert_eq!(response.status(), 200);
}

#[tokio::test]
async fn a_star_is_a_star_and_never_a_reflection() {
    let stage = check("cors: open", POLICIES);
    assert_eq!(stage.faults.len(), 1, "it is warned about");
    let next = chain("cors: open", "GET", ok());
    let response = send(&next, request(Method::GET, &[APP])).await;
    assert_eq!(about(&response), map(&[("access-control-allow-origin", "*"), ("vary", "Accept, Origin")]));
}

#[test]
fn faults_are_all_reported() {
    let bad = check(
        "cors: { origins: [\"https://a.example/\", \"https://A.example\", \"https://*.a.example\", a.example, \"https://a.example:443\", \"https://bücher.example\"], methods: [get, TRACE], headers: [\"a b\"], expose: [\"*\"] }",
        "",
    );
    assert_eq!(bad.faults.len(), 10, "{:#?}", bad.faults);
    assert!(bad.stage.is_none());
    for good in [
        "https://a.example",
        "http://localhost:3000",
        "http://[::1]:8080",
        "chrome-extension://abcdef",
        "capacitor://localhost",
    ] {
        assert_eq!(not_an_origin(good), None, "{good}");
    }
}

#[test]
fn stars_and_null_are_never_with_credentials() {
    for (origins, code) in
        [("\"*\"", "VG011"), ("\"null\"", "VG011"), ("\"*\", \"https://a.example\"", "VG011")]
    {
        let bad = check(&format!("cors: {{ origins: [{origins}], credentials: true }}"), "");
        assert!(bad.stage.is_none());
        assert_eq!(bad.faults.len(), 1);
        assert!(bad.faults[0].contains(code), "{:?}", bad.faults);
    }
}

#[test]
fn a_policy_has_a_name_or_is_one() {
    assert_eq!(
        check("cors: defualt", POLICIES).faults,
        ["s:1:7 VG034 CORS policy `defualt` is not defined [did you mean `default`?]"]
    );
    assert_eq!(
        check("cors", "").faults,
        ["s:1:1 VG034 CORS policy `default` is not defined [none is defined]"]
    );
    assert_eq!(
        check("cors: { policy: default, max_age: 1m }", POLICIES).faults,
        [
            "s:1:17 VG011 `policy` names a policy, the other keys are one [keep the name, or the keys, not both]"
        ]
    );
    assert_eq!(check("cors: { credentials: true }", "").faults.len(), 1, "no origins");
}

#[test]
fn a_changed_policy_changes_the_route() {
    let digest = |manifest: &str| check("cors: default", manifest).digest;
    assert_eq!(digest(POLICIES), digest(POLICIES));
    assert_ne!(digest(POLICIES), digest(&POLICIES.replacen("credentials: true", "credentials: false", 1)));
    assert_ne!(digest(POLICIES), digest(&POLICIES.replacen("app.example", "app2.example", 1)));
}

use super::*;
use crate::grpc::testing::pool;
use prost::Message as _;
use serde_json::{Value as Json, json};

fn wanted(method: &str, http: Method, params: &[&str]) -> Wanted {
    Wanted {
        method: format!("test.Things/{method}"),
        http: Some(http),
        params: params.iter().map(|&param| param.to_owned()).collect(),
        body: None,
        response_body: None,
    }
}

fn bind(method: &str, http: Method, params: &[&str]) -> Result<Call, Vec<String>> {
    bound(&wanted(method, http, params))
}

fn bound(wanted: &Wanted) -> Result<Call, Vec<String>> {
    Call::bind(pool(), wanted)
        .map_err(|problems| problems.into_iter().map(|problem| problem.message).collect())
}

/// The message of a request, or its faults.
fn sent(call: &Call, params: &[&str], query: &str, body: &str) -> Result<Json, Vec<String>> {
    let told = |faults: Vec<FieldFault>| -> Vec<String> {
        faults.into_iter().map(|fault| format!("{}: {}", fault.pointer, fault.en)).collect()
    };
    let query = Some(query).filter(|query| !query.is_empty());
    let address = call.address(|index| params.get(index).copied(), query).map_err(told)?;
    let message = call.message(&address, body.as_bytes()).map_err(told)?;
    Ok(serde_json::to_value(&message).unwrap())
}

#[test]
fn path_and_query_take_fields_by_their_names() {
    let call = bind("Get", Method::GET, &["id"]).unwrap();
    assert_eq!(call.path(), "/test.Things/Get");
    let message =
        sent(&call, &["a%20b"], "count=5&tags=x&tags=y&inner.displayName=n&token=secret", "ignored");
    let inner = json!({ "displayName": "n" });
    assert_eq!(message.unwrap(), json!({ "id": "a b", "count": "5", "tags": ["x", "y"], "inner": inner }));
    let faults = sent(&call, &["%FF"], "count=x&nope=1&flag=true&flag=false&id=b&labels=1", "").unwrap_err();
    let wanted = [
        ": path parameter 1 must be UTF-8",
        ": query parameter `count` must be a whole number of 64 bits, as a number or a string",
        ": query parameter `nope` is not known here",
        ": query parameter `flag` is given twice",
        ": query parameter `id` is not taken here: the path says it",
        ": query parameter `labels` is not known here",
    ];
    assert_eq!(faults, wanted);
}

#[test]
fn the_whole_body_is_the_message_and_the_path_goes_before_it() {
    let call = bind("Put", Method::PUT, &["id"]).unwrap();
    assert_eq!(
        sent(&call, &["p"], "", r#"{"id":"b","flag":true}"#).unwrap(),
        json!({ "id": "p", "flag": true })
    );
    assert_eq!(sent(&call, &["p"], "", " ").unwrap(), json!({ "id": "p" }));
    let faults = sent(&call, &["p"], "count=1", "{}").unwrap_err();
    assert_eq!(faults, [": query parameter `count` is not taken here: send it in the body"]);
    assert_eq!(sent(&call, &["p"], "", r#"{"nope":1}"#).unwrap_err(), ["/nope: is not a field of this call"]);
}

#[test]
fn the_methods_own_rule_is_kept_where_it_fits() {
    let call = bind("Named", Method::PATCH, &["shelf", "thing", "name"]).unwrap();
    let message = sent(&call, &["1", "2", "n"], "count=3", r#"{"a":1}"#).unwrap();
    let inner = json!({ "displayName": "n" });
    let wanted = json!({ "id": "shelves/1/things/2", "inner": inner, "count": "3", "extra": { "a": 1.0 } });
    assert_eq!(message, wanted);
    let mut out = Vec::new();
    let answer = call.message(&call.address(|_| Some("x"), None).unwrap(), b"{}").unwrap();
    call.answer(answer.encode_to_vec().into(), &Style::new(false, false), &mut out).unwrap();
    assert_eq!(out, br#"{"displayName":"x"}"#, "response_body");

    let call = bind("Named", Method::POST, &[]).unwrap();
    assert_eq!(call.body_field(), Some("inner"));
    assert_eq!(
        sent(&call, &[], "id=a", r#"{"numbers":[1]}"#).unwrap(),
        json!({ "id": "a", "inner": { "numbers": [1] } })
    );
    let faults = sent(&call, &[], "inner.displayName=a", "").unwrap_err();
    assert_eq!(faults, [": query parameter `inner.displayName` is not taken here: it is part of the body"]);

    // What the route says goes before; where no rule fits, names count.
    let own = Wanted {
        body: Some("*".into()),
        response_body: Some("tags".into()),
        ..wanted_of("Named", Method::POST)
    };
    let call = bound(&own).unwrap();
    assert_eq!(sent(&call, &[], "", r#"{"id":"a"}"#).unwrap(), json!({ "id": "a" }));
    let call = bind("Named", Method::PUT, &["id"]).unwrap();
    assert_eq!(sent(&call, &["a"], "", r#"{"flag":true}"#).unwrap(), json!({ "id": "a", "flag": true }));
}

fn wanted_of(method: &str, http: Method) -> Wanted {
    wanted(method, http, &[])
}

#[test]
fn what_does_not_go_together_is_said() {
    let why = |wanted: &Wanted| bound(wanted).unwrap_err().join("; ");
    let other = |method: &str| Wanted { method: method.to_owned(), ..wanted_of("Get", Method::GET) };
    assert_eq!(why(&other("test.Thing/Get")), "the descriptors have no service `test.Thing`");
    assert_eq!(why(&other("test.Things/get")), "`test.Things` has no method `get`");
    assert_eq!(why(&other("test.Things")), "`test.Things` is no name of a method");
    let help = |wanted: &Wanted| Call::bind(pool(), wanted).unwrap_err()[0].help.clone().unwrap();
    assert!(help(&other("test.Thing/Get")).contains("`test.Things`"));
    assert!(help(&other("test.Things/Gat")).contains("`Get`"));
    let params = |names: &[&str]| wanted("Put", Method::PUT, names);
    assert!(why(&params(&["idd"])).contains("`idd` of the path takes no field"));
    assert!(why(&params(&["tags"])).contains("is a list"));
    assert!(why(&params(&["inner"])).contains("is a message"));
    let body = |body: &str, http| Wanted { body: Some(body.into()), ..wanted_of("Put", http) };
    assert!(why(&body("nope", Method::PUT)).contains("no field `nope`"));
    assert!(why(&body("*", Method::GET)).contains("no body"));
    let answer = Wanted { response_body: Some("nope".into()), ..wanted_of("Put", Method::PUT) };
    assert!(why(&answer).contains("no field `nope`"));
    assert!(why(&wanted_of("Upload", Method::GET)).contains("takes a stream"));
    let part = Wanted { body: Some("inner".into()), ..wanted_of("Talk", Method::POST) };
    assert!(why(&part).contains("takes a stream"));
    assert!(bind("Upload", Method::POST, &["id"]).unwrap().takes_stream());
    assert!(bind("Watch", Method::GET, &[]).unwrap().gives_stream());
    sent(&bind("Empty", Method::POST, &[]).unwrap(), &[], "", "").unwrap();
}

#[test]
fn fields_are_named_as_the_caller_knows_them() {
    let whole = bind("Put", Method::PUT, &["id"]).unwrap();
    let part = bind("Named", Method::POST, &[]).unwrap();
    assert_eq!(whole.pointer("inner.display_name", false), "/inner/displayName");
    assert_eq!(whole.pointer("inner.display_name", true), "/inner/display_name");
    assert_eq!(whole.pointer("inners[2].numbers[0]", false), "/inners/2/numbers/0");
    assert_eq!(whole.pointer("labels[\"a/b\"]", false), "/labels/a~1b");
    assert_eq!(whole.pointer("elsewhere", false), "/elsewhere");
    assert_eq!(part.pointer("inner.display_name", false), "/displayName");
    assert_eq!(whole.pointer("", false), "");
}

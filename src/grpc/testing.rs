//! A service with one of everything.

use prost_reflect::DescriptorPool;
use std::sync::OnceLock;

const PROTO: &str = r#"
syntax = "proto3";
package test;
import "google/api/annotations.proto";
import "google/protobuf/timestamp.proto";
import "google/protobuf/duration.proto";
import "google/protobuf/struct.proto";
import "google/protobuf/wrappers.proto";
import "google/protobuf/empty.proto";

enum Color { COLOR_UNSPECIFIED = 0; RED = 1; }
message Inner { string display_name = 1; repeated int32 numbers = 2; }
message All {
  string id = 1;
  int64 count = 2;
  google.protobuf.Timestamp at = 3;
  Color color = 4;
  bytes raw = 5;
  repeated string tags = 6;
  map<string, string> labels = 7;
  Inner inner = 8;
  google.protobuf.Struct extra = 9;
  google.protobuf.Duration wait = 10;
  google.protobuf.Int32Value size = 11;
  bool flag = 12;
  repeated Inner inners = 13;
  oneof side { string left = 14; string right = 15; }
}
service Things {
  rpc Get(All) returns (All) { option (google.api.http) = { get: "/v1/things/{id}" }; }
  rpc Named(All) returns (All) {
    option (google.api.http) = {
      patch: "/v1/{id=shelves/*/things/*}/of/{inner.display_name}"
      body: "extra"
      response_body: "inner"
      additional_bindings { post: "/v1/things" body: "inner" }
    };
  }
  rpc Put(All) returns (All);
  rpc Empty(google.protobuf.Empty) returns (google.protobuf.Empty);
  rpc Watch(All) returns (stream All);
  rpc Upload(stream All) returns (All);
  rpc Talk(stream All) returns (stream All);
}
"#;

/// Its descriptors.
pub(crate) fn pool() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("test.proto"), PROTO).unwrap();
        crate::protos::compile(&["test.proto".to_owned()], folder.path()).descriptors.unwrap()
    })
}

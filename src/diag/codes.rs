//! The catalogue of diagnostic codes. Codes are stable: a number is never used for something else.

/// A code such as `VG031`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Code(pub u16);

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "VG{:03}", self.0)
    }
}

/// What a code stands for.
#[derive(Debug, Clone, Copy)]
pub struct CodeInfo {
    /// The code.
    pub code: Code,
    /// In a few words.
    pub title: &'static str,
    /// Why it is a fault, and the usual cure.
    pub why: &'static str,
}

/// The entry of a code.
pub fn describe(code: Code) -> Option<&'static CodeInfo> {
    CATALOG.iter().find(|info| info.code == code)
}

macro_rules! codes {
    ($($name:ident = $number:literal: $title:literal, $why:literal;)*) => {
        impl Code {
            $(#[doc = concat!($title, ".")] pub const $name: Code = Code($number);)*
        }

        /// Every code, in order.
        pub const CATALOG: &[CodeInfo] =
            &[$(CodeInfo { code: Code($number), title: $title, why: $why },)*];
    };
}

codes! {
    SYNTAX = 1: "the file is not YAML",
        "The parser stopped here; nothing behind this place was read. Usual causes are indentation, an unclosed bracket or quote, and a colon in an unquoted text.";
    BOUNDS = 2: "the file is larger or deeper than a manifest may be",
        "Size, depth, aliases and the number of included files are bounded so that a manifest cannot exhaust the gateway.";
    DUPLICATE_KEY = 3: "a key stands twice in one mapping",
        "YAML readers disagree on which of the two counts, so neither does.";
    UNREADABLE = 4: "a file cannot be read",
        "The file is missing, not a file, not UTF-8, or may not be read by this user.";
    INCLUDE = 5: "an include matches no file",
        "A pattern that matches nothing is nearly always mistyped. Patterns are relative to the file that includes.";
    ENV_UNSET = 6: "an environment variable is not set",
        "`${VAR}` needs the variable; `${VAR:-default}` gives a default, `${VAR:?message}` a message.";
    ENV_SYNTAX = 7: "a ${…} is malformed",
        "Forms are `${VAR}`, `${VAR:-default}` and `${VAR:?message}`; a literal `$` before a brace is written `$$`.";
    DEFINED_TWICE = 8: "a name is defined twice",
        "Sections of included files are merged; two definitions of one name would hide one of them.";
    FORMAT_VERSION = 9: "the manifest's format version is not known",
        "This gateway reads `version: 1`.";
    UNKNOWN_KEY = 10: "a key is not known here",
        "Unknown keys are refused so that a mistyped limit never means no limit.";
    BAD_VALUE = 11: "a value is not of the right form",
        "The message says what is expected. Durations and sizes carry their unit: `30s`, `1MiB`.";
    MISSING_KEY = 12: "a required key is missing",
        "The mapping cannot be used without it.";
    UNKNOWN_CHAIN = 30: "a chain is not defined",
        "Chains are defined under `chains:`.";
    UNKNOWN_UPSTREAM = 31: "an upstream is not defined",
        "Upstreams are defined under `upstreams:`.";
    UNKNOWN_STAGE = 32: "a stage is not known",
        "The stages are listed by `voicegate schema` and in the documentation.";
    UNKNOWN_HANDLER = 33: "a handler is not known",
        "Handlers are named by group and verb, such as `gateway.health`.";
    UNKNOWN_POLICY = 34: "a policy is not defined",
        "Policies are defined under `cors:` and `rate_limits:`.";
    UNKNOWN_ROLE = 35: "a role is not defined",
        "Roles are defined under `roles:`.";
    CYCLE = 36: "a definition contains itself",
        "Chains and roles may build on others, but not in a circle.";
    BAD_PATTERN = 40: "a route pattern is malformed",
        "A route is `METHOD /path`; `:name` takes one segment, `*name` the rest and must stand last.";
    CONFLICT = 41: "two routes cannot be told apart",
        "Same host, method, path shape and predicates: one of the two could never answer.";
    SHADOWED = 42: "a route can never answer",
        "Another route takes every request it could match.";
    UNKNOWN_PARAMETER = 43: "a template names an unknown parameter",
        "`{name}` refers to a `:name` or `*name` of the route's pattern.";
    TARGET = 44: "a route needs exactly one target",
        "A route ends in one of `handler`, `upstream`, `split`, `respond` or `redirect`.";
    BAD_MATCH = 45: "a host or a predicate is malformed",
        "`host:` takes a host name (or `*.name`), `match:` header and query values.";
    MISPLACED = 46: "a key does not apply here",
        "The key belongs to another kind of target or protocol and would be ignored.";
    NOT_PUBLIC = 50: "a route has neither `auth` nor `public: true`",
        "A route that anybody may call says so; otherwise a forgotten stage would open it.";
    STAGE_ORDER = 51: "a stage stands in the wrong place",
        "The first stage of a chain is outermost. Some stages need what an earlier one finds out.";
    STAGE_TWICE = 52: "a stage stands twice in a chain",
        "The second would undo or repeat the first. Use `with:` to change a stage's body for one route.";
    BUFFERS_STREAM = 53: "a stage would hold back a stream",
        "Streams pass byte by byte; compressing, buffering or a total deadline breaks them.";
    NO_PERMISSION = 54: "a route's permission cannot be derived",
        "`rbac` without a body takes the resource from the first static segment of the path behind the version's prefix. Where there is none, nobody could ever pass.";
    DEADLINES = 60: "deadlines contradict each other",
        "A limit that always fires before another makes the other useless, or cuts what should live.";
    UNSAFE_RETRY = 61: "a retry of an unsafe method",
        "A POST or PATCH that was sent may have been carried out; only an `Idempotency-Key` makes it repeatable.";
    UNUSED = 62: "a definition is never used",
        "It has no effect; often the reference to it is mistyped or was removed.";
    LOOSENED = 63: "a safety rule is loosened",
        "The manifest may do this, but somebody should have decided it.";
    NO_CALLER = 70: "something goes by the caller where nobody is known",
        "Who is calling is found out by `auth` or `api_key`. Without one of them a limit would count all callers of an address as one, and a cache know no users.";
    PROTOCOL_MISMATCH = 80: "a route and its upstream do not speak the same protocol",
        "`protocol: grpc` stands at the upstream, whose servers are then spoken to in HTTP/2, and at the routes that call them.";
    GRPC_ROUTE = 81: "a route that no gRPC call can take",
        "A call is a POST to `/package.Service/Method`, and its client chooses neither.";
    READS_CALLS = 82: "a stage would read what it cannot",
        "A gRPC call's messages are protobuf in frames, both ways at once; the stage is for single bodies such as JSON.";
    DESCRIPTORS = 85: "the descriptors of a gRPC service cannot be had",
        "An upstream whose methods are called by JSON names one source: `protos` (files, compiled here), `descriptors` (a descriptor set) or `reflection: true` (the server is asked).";
    UNKNOWN_METHOD = 86: "a gRPC service or method is not known",
        "`grpc:` names `package.Service/Method` as the upstream's descriptors spell it.";
    BINDING = 87: "a route and its gRPC method do not fit",
        "Every parameter of the path takes a field of the request's message; body and response body are `*` or a field.";
    METHOD_KIND = 88: "a gRPC method of this kind cannot be called like this",
        "Methods that take a stream read it from the request's body, so their routes need a method that has one, and no fields from elsewhere but the path.";
    EXPRESSION = 90: "an expression cannot be read",
        "Expressions are CEL (https://cel.dev): `claims.role == 'admin' && request.path.startsWith('/x')`. Texts in them stand in single quotes.";
    EXPRESSION_NAME = 91: "an expression names something that is not there",
        "Variables are `route`, `request` and `claims`, in mappings also `body` and `response`; each has the fields that the documentation lists.";
    EXPRESSION_TYPE = 92: "an expression is of the wrong type",
        "What would fail or be the same for every request is refused: a text is not compared with a number, and a condition is true or false.";
    EXPRESSION_COST = 93: "an expression may cost too much",
        "Expressions run for every request, so their length, depth and loops are bounded, and patterns are compiled beforehand.";
    MAPPING = 94: "a mapping contradicts itself",
        "Two of its keys would write the same field, or a path cannot be followed.";
    BAD_REFERENCE = 95: "a reference leads nowhere",
        "References are `file#/json/pointer`, relative to the file they stand in. Files are read with the manifest; nothing is fetched from the network.";
    BAD_DOCUMENT = 96: "an API description cannot be used",
        "Descriptions are OpenAPI 3.1 with JSON Schema 2020-12. What a document says and the gateway cannot hold is refused, never ignored.";
    NO_DESCRIPTION = 97: "a stage needs a description that the route does not have",
        "`validate` without a schema goes by the operation that `docs.openapi` of the route names.";
    HASH_KEY = 100: "requests cannot be spread by this",
        "`balance: { hash: … }` takes `user`, `session`, `ip`, or `header.X` with the name of a header.";
    HEALTH_CHECK = 101: "it is not clear how servers are asked for their health",
        "A server is asked in one way: `path` (GET, any 2xx), `tcp: true` (it takes connections), or with `protocol: grpc` by the gRPC health protocol.";
    OUTLIER = 102: "an outlier rule can never hold, or always does",
        "Shares are above 0 and at most 1, counts at least 1, and a server is slower than others by a factor above 1.";
    FALLBACK = 108: "a fallback that never helps",
        "A fallback says what answers instead of an upstream that cannot: `upstream`, `stale` or `respond`. Each needs a route that it can be done for.";
    SPLIT = 109: "a split that splits nothing",
        "A split names at least two upstreams, each once, and at least one of them has a weight above 0.";
    MIRROR = 110: "a mirror that shows nothing, or does everything twice",
        "Copies are for another upstream than the one that answers, which would carry out each request twice.";
    MAINTENANCE = 111: "what must stay up is switched off",
        "The gateway's own health checks answer whatever is switched off: who asks them decides whether it is alive.";
    SHARED_ANSWERS = 112: "a cache could give one caller's answer to another",
        "Behind `auth` or `api_key` a cache tells users apart (`by: [user]`), or says that all of them get the same (`shared: true`).";
    NOT_CACHEABLE = 113: "a cache where nothing can be kept",
        "Answers to GET are kept, and HEAD is answered from them; other methods change something.";
    TEST_FAILS = 114: "a test of the manifest fails",
        "Tests say what must become of a request. They run offline with every check; while one fails, the manifest is not served.";
    BAD_TEST = 115: "a test of the manifest cannot be decided",
        "A test names a request (`METHOD /path`) and what must become of it: the `route` that takes it, the `stage` that ends its way, the `status`. What an upstream or an operation answers is not known offline.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_ascending() {
        for pair in CATALOG.windows(2) {
            assert!(pair[0].code < pair[1].code, "{} and {}", pair[0].code, pair[1].code);
        }
        assert_eq!(Code::UNKNOWN_UPSTREAM.to_string(), "VG031");
        assert_eq!(describe(Code::SYNTAX).unwrap().code, Code(1));
    }
}

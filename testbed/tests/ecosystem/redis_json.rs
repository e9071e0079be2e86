//! Random scripts that write and read JSON, to be compared with a real redis-server's.

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// What scripts set of a `cjson` of their own, and to what.
const JSON_SETTINGS: &[&str] = &[
    "encode_max_depth",
    "decode_max_depth",
    "encode_sparse_array",
    "encode_number_precision",
    "encode_keep_buffer",
    "encode_invalid_numbers",
    "decode_invalid_numbers",
];
const JSON_SET_TO: &[&str] = &[
    "",
    "1",
    "2",
    "3",
    "0",
    "-1",
    "14",
    "15",
    "2.7",
    "'2'",
    "'on'",
    "'off'",
    "'null'",
    "'x'",
    "{}",
    "true",
    "false",
    "nil",
    "true, 2",
    "true, 1, 2",
    "false, 2, -1",
    "1e10",
    "2, 3",
    "true, 2, 3, 4",
];
/// Values that are written.
const JSON_VALUES: &[&str] = &[
    "{}",
    "nil",
    "cjson.null",
    "{1, 2}",
    "{[1] = 1, [20] = 2}",
    "{[2] = 1}",
    "{a = {1}}",
    "{[1.23456789012345] = 2}",
    "{[-1] = 2}",
    "{[0] = 2}",
    "1 / 0",
    "-1 / 0",
    "0 / 0",
    "{[1 / 0] = 1}",
    "1 / 3",
    "123456789012345678",
    "-0",
    "'a\\n\\0\\127/\\\"\\\\\\200'",
    "true",
    "{{{{}}}}",
    "{a = {{b = {}}}}",
    "{{1}, {2}}",
    "print",
    "{type}",
    "{[true] = 1}",
    "ARGV[1]",
    "{ARGV[1], tonumber(ARGV[1])}",
];
/// Parts of texts that are read.
const JSON_PARTS: &[&str] = &[
    "[",
    "[",
    "]",
    "{\"a\":",
    "{",
    "}",
    ",",
    ":",
    "\"a\"",
    "\"\"",
    "\"\\u00e9\"",
    "\"\\ud83d\\ude00\"",
    "\"\\ud83d\"",
    "\"\\udc00\"",
    "\"\\u+123\"",
    "\"\\q\"",
    "\"\t\"",
    "\"open",
    "1",
    "-1.5e3",
    "-",
    "1.",
    "1e",
    "1e400",
    ".5",
    "-.5",
    "007",
    "0x1F",
    "0x1p4",
    "0x",
    "+1",
    "inf",
    "-Infinity",
    "nan",
    "-nan",
    "NaN(x)",
    "true",
    "tru",
    "false",
    "null",
    "nul",
    " ",
    "\n",
    "\u{c}",
    "\u{0}",
    "x",
    "\u{7f}",
];

/// A text that is JSON, or nearly.
fn json(random: &mut StdRng, depth: usize) -> String {
    let part = |random: &mut StdRng| (*JSON_PARTS.choose(random).unwrap()).to_owned();
    let several = |random: &mut StdRng| {
        let count = random.random_range(0..4);
        let all: Vec<String> = (0..count).map(|_| json(random, depth + 1)).collect();
        all.join(if random.random_range(0..20) == 0 { "" } else { "," })
    };
    match random.random_range(0..10) {
        0..3 if depth < 5 => format!("[{}]", several(random)),
        // One name, since the order of several is nobody's.
        3..5 if depth < 5 => format!("{{\"a\": {}}}", json(random, depth + 1)),
        5 => (0..random.random_range(0..4)).map(|_| part(random)).collect(),
        6 => " [1, {\"b\": null}]\t".into(),
        _ => part(random),
    }
}

/// A script that reads and writes JSON by settings of its own.
pub(crate) fn script(random: &mut StdRng) -> Vec<String> {
    let mut text = "local j, r = cjson.new(), {} ".to_owned();
    let tries = |what: String| {
        // With a name, and not as the last call, errors name the function.
        format!("r[#r + 1] = {{pcall(function() local a, b, c = {what} return a, b, c end)}} ")
    };
    for _ in 0..random.random_range(0..4) {
        let (name, to) =
            (JSON_SETTINGS.choose(random).unwrap(), JSON_SET_TO.choose(random).unwrap());
        text.push_str(&tries(format!("j.{name}({to})")));
    }
    for _ in 0..random.random_range(1..3) {
        match random.random_range(0..3) {
            0 => {
                text.push_str(&tries(format!("j.encode({})", JSON_VALUES.choose(random).unwrap())))
            }
            1 => text.push_str(&tries("j.decode(ARGV[1])".into())),
            _ => text.push_str(&tries("j.encode(j.decode(ARGV[1]))".into())),
        }
    }
    text.push_str("return r");
    vec!["EVAL".into(), text, "0".into(), json(random, 0)]
}

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    warmhop_cli::fuzzing::redis_requests(input);
});

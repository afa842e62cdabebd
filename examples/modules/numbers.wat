;; Written by hand and compiled when an example runs: asyncwasm.wat2wasm turns it into a module.
(module
  (func (export "add") (param $a i32) (param $b i32) (result i32)
    (i32.add (local.get $a) (local.get $b)))

  ;; The naive recursion, because it is slow: each step of $n takes 1.6 times longer.
  (func $fib (export "fib") (param $n i32) (result i32)
    (if (result i32) (i32.lt_s (local.get $n) (i32.const 2))
      (then (local.get $n))
      (else
        (i32.add
          (call $fib (i32.sub (local.get $n) (i32.const 1)))
          (call $fib (i32.sub (local.get $n) (i32.const 2)))))))

  ;; Never returns: only its host can end it.
  (func (export "spin")
    (loop $again (br $again))))

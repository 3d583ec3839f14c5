"""Tests of the op lora: of its reference, its kernel and its public function."""

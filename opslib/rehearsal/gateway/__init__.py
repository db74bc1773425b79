"""What stands in front of moto: HTTP, AWS's protocols, signatures, permissions and validation."""

"""Who may join a network, and how its connections are protected: certificates, keys, admission."""

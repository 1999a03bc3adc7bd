"""Our producer and consumer against aiokafka, confluent's asyncio clients and FastStream."""

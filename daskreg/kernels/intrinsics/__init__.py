"""Operations that are one instruction on a GPU, each with a plain formula that defines it."""
